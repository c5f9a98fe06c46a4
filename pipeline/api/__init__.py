"""The functions of `sen2fine`, for Python: runs, plans, and images that are open already."""
