"""What runs in a sandbox, traced and drawn."""
