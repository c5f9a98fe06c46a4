"""Training of the networks that ship with the pipeline; the pipeline never imports it."""
