"""Containers known from their files only: records, locks, and all that can be done with them."""
