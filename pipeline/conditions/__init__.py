"""Maps that condition a system in addition to the scenes. They are frozen into the plan and read window by window."""
