"""The runsc binary: its releases, flags and files, and the calls to a sentry."""
