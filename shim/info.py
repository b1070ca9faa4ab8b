"""``-info``: what this runtime can do, for containerd's task manager and CRI.

``runtime/bundle/features.py`` makes the claims.  Never fails, since a failure would count as a
runtime without features.
"""

from __future__ import annotations

import json

from runtime.base.errors import RuntimeFault
from runtime.base.version import VERSION
from runtime.bundle.features import features
from shim.ttrpc import protobuf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "io.containerd.gvisor.v2"
_FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def _flags(given: tuple[str, bytes]) -> Mapping[str, str]:
    from shim.base import options

    try:
        return options.decode(given[0], given[1], "default").flags
    except (RuntimeFault, OSError):
        return {}


def info(stdin: int) -> bytes:
    """The RuntimeInfo message for the options that are on ``stdin``, if any.

    ``name=1, version=2 {version=1}, options=3, features=4`` (containerd's
    api/types/introspection.proto).
    """
    from runtime.cgroups.factory import host_mode
    from shim.bootstrap import read_stdin

    given = ("", b"")
    echo = b""
    try:
        data = read_stdin(stdin)
        given = protobuf.parse_any(data)
        echo = data
    except (protobuf.Malformed, RuntimeFault, OSError):
        pass
    content = json.dumps(features(_flags(given), host_mode()), separators=(",", ":")).encode()
    return (
        protobuf.bytes_field(1, NAME)
        + protobuf.bytes_field(2, protobuf.bytes_field(1, VERSION))
        + protobuf.bytes_field(3, echo)
        + protobuf.bytes_field(4, protobuf.any_message(_FEATURES_TYPE, content))
    )
