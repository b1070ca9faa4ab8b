"""What the services of a sandbox read of their requests alike."""

from __future__ import annotations

import time

from protos import pod_pb2
from runtime.base.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from protos.wkt_pb2 import Any
    from shim.ttrpc.call import Call

#: Seconds for a sandbox to start or to end, where its caller set no deadline.
TIMEOUT: Final = 60.0


def deadline_of(call: Call, timeout: float = TIMEOUT) -> float:
    """When a call's time is up, by ``time.monotonic()``."""
    return call.deadline if call.deadline is not None else time.monotonic() + timeout


def config_in(field: str, message: Any) -> pod_pb2.PodSandboxConfig:
    """What CRI says of a pod's sandbox.  Raises InvalidRequest, protobuf's DecodeError."""
    name = message.type_url.rpartition("/")[2]
    if name and name != "runtime.v1.PodSandboxConfig":
        raise InvalidRequest(field, f"type {name[:100]!r} is not runtime.v1.PodSandboxConfig")
    return pod_pb2.PodSandboxConfig.FromString(message.value)
