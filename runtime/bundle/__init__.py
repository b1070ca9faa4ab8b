"""What an OCI bundle says: config.json, process, mounts, masks, hooks, seccomp."""
