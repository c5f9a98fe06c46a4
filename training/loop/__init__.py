"""The training loop, whatever it trains: batches, budget, average, checkpoints, log, processes. Imports data."""
