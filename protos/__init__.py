"""The protobuf messages of containerd's shim API, and nothing that knows what they are for.

``<name>.proto`` holds the messages and fields that we use, numbered as in containerd's API;
``<name>_pb2.py`` and ``<name>_pb2.pyi`` are made from it by ``python -m protos.generate`` and are
committed.  A class is built when its name is first looked up, see ``protos/_pool.py``.

Bytes that do not parse raise ``google.protobuf.message.DecodeError``.
"""
