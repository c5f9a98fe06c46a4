"""Station 1: from files far away to DN on native grids. Imports grid, bands, errors; never superres or store."""
