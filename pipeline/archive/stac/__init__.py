"""STAC items from APIs, files and static catalogues, as scenes."""
