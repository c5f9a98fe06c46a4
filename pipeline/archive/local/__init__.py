"""Folders of Sentinel-2 files on this machine, as scenes."""
