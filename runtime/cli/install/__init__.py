"""``gvctl install``, ``upgrade`` and ``uninstall``: the shim on a node, for what runs its pods."""
