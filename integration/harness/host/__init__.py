"""The programs and the folders that a test's machine is made of: containerd, docker, images."""
