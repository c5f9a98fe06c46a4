"""What can be trained: one task per network, its losses and its examples. Imports all rooms beside it."""
