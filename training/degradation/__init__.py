"""Degradation of sharp images to coarse ones: blur, decimation and noise."""
