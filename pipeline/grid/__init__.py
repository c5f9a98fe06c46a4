"""Pure numbers: grids, the window lattice, positional noise, the sensor model. No I/O."""
