"""What the rest of the harness stands on: where the programs lie, waiting, reading, terminals."""
