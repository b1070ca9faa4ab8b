"""Messages of protos/runtimeoptions.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/runtimeoptions.proto",
    package="runtimeoptions.v1",
    dependencies=(),
    public=(),
    messages=(
        "Options",
    ),
    descriptor=(
        b'\n\x1bprotos/runtimeoptions.proto\x12\x11runtimeoptions.v1'
        b'"E\n\x07Options\x12\x10\n\x08type_url\x18\x01 \x01(\t\x12\x13\n\x0bconfig_path\x18\x02 \x01'
        b'(\t\x12\x13\n\x0bconfig_body\x18\x03 \x01(\x0cb\x06proto3'
    ),
)
