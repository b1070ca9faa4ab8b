"""ttrpc: containerd's small RPC protocol over stream sockets, client and server.

The wire format follows PROTOCOL.md of github.com/containerd/ttrpc; where that is silent, the Go
implementation's behaviour is followed.  The package knows nothing of any service and imports
nothing but the standard library and itself.

``connection`` holds the protocol without I/O, ``server`` and ``client`` put sockets and threads
around it.  Payloads are opaque bytes here.
"""
