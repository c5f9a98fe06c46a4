"""From imagery of any source to crops and tiles: what is read, its pixels, its ground, and what is held out.

Imports pipeline.archive and the presets; no networks.
"""
