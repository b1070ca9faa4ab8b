"""A client of containerd's CRI plugin: what the kubelet says, over gRPC.

The messages come from `cri.proto` beside this file, compiled when the module is loaded: no
generated code has to agree with the protobuf library that is installed.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from integration.harness.clients.daemon_api import Refused

_SOURCE = Path(__file__).with_name("cri.proto")
_SERVICES = ("runtime.v1.RuntimeService", "runtime.v1.ImageService")

#: What `ContainerStatus.state` says.
CREATED, RUNNING, EXITED, UNKNOWN = range(4)
#: What `PodSandboxStatus.state` says.
READY, NOT_READY = range(2)
#: Modes of a namespace: the pod's, the container's own, the host's.
POD, CONTAINER, NODE = range(3)


@functools.cache
def _methods() -> dict[str, tuple[str, type[Any], type[Any]]]:
    """Method name -> gRPC path, class of the request, class of the reply."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "set")
        words = ["protoc", f"-I{_SOURCE.parent}", f"--descriptor_set_out={target}", _SOURCE.name]
        if protoc.main(words) != 0:
            raise RuntimeError(f"protoc refuses {_SOURCE}")
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return {
        method.name: (
            f"/{service}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for service in _SERVICES
        for method in pool.FindServiceByName(service).methods
    }


class Cri:
    """A connection to one daemon.  Close it."""

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{address}",
            options=[
                ("grpc.max_receive_message_length", 32 << 20),
                # A daemon that starts again is found at once.
                ("grpc.initial_reconnect_backoff_ms", 20),
                ("grpc.min_reconnect_backoff_ms", 20),
                ("grpc.max_reconnect_backoff_ms", 50),
            ],
        )

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, timeout: float = 30, /, **values: Any) -> Any:
        """One call; values are the request's fields, messages in them dicts.

        Raises Refused with containerd's own words.
        """
        return self.call_later(method, timeout, **values)()

    def call_later(self, method: str, timeout: float = 30, /, **values: Any) -> Callable[[], Any]:
        """Send a call now; the function returned waits for its reply."""
        path, request, reply = _methods()[method]
        stub = self._channel.unary_unary(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        future = stub.future(request(**values), timeout=timeout)

        def finish() -> Any:
            try:
                return future.result()
            except grpc.RpcError as err:
                code = err.code().value[0]  # type: ignore[attr-defined]
                raise Refused(method, code, err.details() or "") from None  # type: ignore[attr-defined]

        finish.done = future.done  # type: ignore[attr-defined]
        return finish
