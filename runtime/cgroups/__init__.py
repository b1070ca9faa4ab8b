"""Limits, figures and OOM on cgroup v1, v2 and with systemd."""
