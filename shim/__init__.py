"""containerd's side: start and delete, the daemon, the Task API."""
