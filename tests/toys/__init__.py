"""Systems of one file each, as a user would bring them: known behaviour, no weights, found by an entry point."""
