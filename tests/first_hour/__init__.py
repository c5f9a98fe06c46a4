"""What a new user does with a store in the first hour, with warnings as errors."""
