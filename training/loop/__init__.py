"""The generic training loop: batches, budget, weight average, checkpoints, log and distributed processes."""
