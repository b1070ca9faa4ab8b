"""A task's FIFOs, terminals and log programs."""
