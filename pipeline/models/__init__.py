"""Networks, samplers and weights bundles. Torch only; imports nothing else of the pipeline."""
