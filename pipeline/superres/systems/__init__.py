"""Super-resolution systems, one module each, whose `SYSTEM` is the `SystemSpec`."""

DEFAULT = "lite"  # system of a run by default
PLAIN = "bicubic"  # interpolation, without networks
