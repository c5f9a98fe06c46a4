"""From sharp to coarse images: the blur, decimation and noise that networks learn to undo. Imports torch only."""
