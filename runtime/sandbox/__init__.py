"""One sentry with its gofers: start, join, exits, checkpoint and restore."""
