"""Training tasks: one per network, with its losses and its batches."""
