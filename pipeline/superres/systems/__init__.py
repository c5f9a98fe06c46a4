"""The super-resolution systems, one module each, whose `SYSTEM` is the `SystemSpec`."""

DEFAULT = "lite"  # what a run uses where nothing else is asked for
PLAIN = "bicubic"  # interpolation, without networks
