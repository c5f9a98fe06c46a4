"""What only a GPU can tell, as one command: `python -m tests.gpu`."""
