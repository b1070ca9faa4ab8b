"""What a running shim tells of itself: counters, stacks and its log's level over a debug socket.

Nothing here talks to a sentry or waits for anybody.
"""
