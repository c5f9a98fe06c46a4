"""The version, read by provenance and packaging."""

VERSION = "0.1.0"
