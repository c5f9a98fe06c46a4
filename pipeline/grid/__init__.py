"""Pure integers and floats: grids, the window lattice, keyed noise. No I/O, torch or dask; imports nothing above it."""
