"""A frozen plan as jobs of a cluster: SLURM arrays and Kubernetes manifests."""
