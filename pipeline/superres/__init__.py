"""Super-resolution from 10, 20 and 60 m to 2.5 m and finer, on arrays in memory."""
