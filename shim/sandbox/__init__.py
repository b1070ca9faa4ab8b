"""containerd's Sandbox API: pods without a pause container."""
