"""The pod's network, read from its namespace and handed to the sentry."""
