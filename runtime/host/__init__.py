"""The Linux host: processes, descriptors, the event loop, system calls, systemd."""
