"""Networks, samplers and weights bundles."""
