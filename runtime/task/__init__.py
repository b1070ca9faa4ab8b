"""Live containers and execs: containerd's tasks."""
