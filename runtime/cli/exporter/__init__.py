"""``gvctl metrics``: figures of all sandboxes of the node, in Prometheus' text format.

``collect`` looks, ``asking`` is how sentries and shims are asked all at once, ``figures`` says
what is told, ``text`` how it is written, ``pages`` when to look and what to give to whom,
``serve`` is the HTTP server.
"""
