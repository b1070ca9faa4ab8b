"""The fork server: imports all that shims need once for each containerd, and forks them."""
