"""Station 2: from 10/20/60 m to 2.5 m, numbers in, numbers out. Imports grid, bands, models; no I/O."""
