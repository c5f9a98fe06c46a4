"""Maps that systems are given beside the scenes: frozen into the plan, read window by window."""
