"""Real servers beside which the pipeline is tested: slow to start, absent from most machines."""
