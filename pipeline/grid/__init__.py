"""Pure integers and floats: grids, the window lattice, keyed noise. No I/O, no torch, no dask, nothing of the pipeline."""
