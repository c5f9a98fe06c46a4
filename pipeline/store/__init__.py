"""Station 3: from numbers to a published Zarr store. Imports grid, bands, errors; never archive or superres."""
