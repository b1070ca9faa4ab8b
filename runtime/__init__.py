"""Containers under gVisor; knows nothing of containerd."""
