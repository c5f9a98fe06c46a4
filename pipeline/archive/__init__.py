"""From a STAC archive or a folder of files to canonical DN on native grids."""
