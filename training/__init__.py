"""Training of the shipped networks. The pipeline does not import this package."""
