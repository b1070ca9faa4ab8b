"""A running shim becomes another version of itself: its objects are handed over."""
