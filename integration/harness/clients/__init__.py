"""What a client of containerd, of CRI, of a shim or of a command line says."""
