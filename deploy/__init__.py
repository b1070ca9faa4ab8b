"""What brings the shim to nodes: bundle, Debian package, container image, manifests."""
