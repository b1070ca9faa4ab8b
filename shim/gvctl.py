"""Entry point of ``gvctl``: the command of ``runtime/cli``, with the way to a living shim added.

A change that a living shim has to know of is made by the shim, which is called by its task API.
"""

from __future__ import annotations

from runtime.base.errors import DeadlineExceeded, Failed, RuntimeFault, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from runtime.state.shim_record import ContainerRecord

_SERVICE = "containerd.task.v2.Task"
_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
#: Seconds for an update, which writes some files.
TIMEOUT = 10.0


def ask_for_update(record: ContainerRecord, resources: Mapping[str, Any]) -> None:
    """Have a container's shim change its limits.

    Raises Unsupported or Failed in the shim's words, DeadlineExceeded, and Failed
    if no shim answers.
    """
    from protos import task_pb2 as pb
    from protos.wkt_pb2 import Any as AnyMessage
    from runtime.base import fastjson
    from shim.base import sockets
    from shim.ttrpc.client import Client
    from shim.ttrpc.errors import ConnectionLost, StatusError

    path = sockets.path_of(record.shim_address)
    value = fastjson.dumps(resources).encode("ascii")
    request = pb.UpdateTaskRequest(id=record.id, resources=AnyMessage(type_url=_TYPE, value=value))
    try:
        client = Client(path, TIMEOUT)
        try:
            client.call(
                _SERVICE,
                "Update",
                request.SerializeToString(),
                timeout=TIMEOUT,
                metadata={"containerd-namespace-ttrpc": (record.namespace,)},
            )
        finally:
            client.close()
    except StatusError as error:
        raise _fault(error.code, str(error)) from None
    except TimeoutError:
        raise DeadlineExceeded(f"the shim of container {record.id!r}", TIMEOUT) from None
    except (OSError, ConnectionLost) as error:
        raise Failed(f"the shim of container {record.id!r} does not answer: {error}") from None


def _fault(code: int, text: str) -> RuntimeFault:
    from shim.base import status

    text = text.removesuffix(f" (code {code})")
    if code == status.UNIMPLEMENTED:
        return Unsupported(text)
    return Failed(text)


def run() -> NoReturn:
    """Run the command."""
    from runtime.cli import main
    from shim.observe import debug_client

    # What ps shows is the interpreter's name otherwise, or the dynamic loader's.
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(b"gvctl")
    except OSError:
        pass
    main.run(ask_for_update, debug_client.ask, debug_client.Posted)
