"""Cluster jobs of a frozen plan: SLURM arrays and Kubernetes manifests."""
