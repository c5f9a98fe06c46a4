"""The version, in one place: provenance and packaging read it here."""

VERSION = "0.1.0"
