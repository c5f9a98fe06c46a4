"""The fault suite: what goes wrong in the field, done on purpose. `python -m tests.faults` prints its table."""
