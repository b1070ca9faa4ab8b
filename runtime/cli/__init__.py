"""gvctl: the operator's command, and runc's command line."""
