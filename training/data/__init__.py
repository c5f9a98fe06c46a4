"""Training data: image sources, readers, train and held-out splits, crops and tiles."""
