"""The Checkpoint service: a pod without a pause container, saved and put back as one.

Served as ``containerd.runtime.sandbox.v1.Checkpoint`` where the operator's option
``pod_checkpoint`` is on: it is what is proposed to containerd for CheckpointPod and RestorePod
of Kubernetes 1.37 (KEP-5823), and may change.  Owns what of a request fits which sandbox and
image; the sandbox's exchange is the Sandbox service's, saving and loading are the pod's.

CRI asks for a restore of a sandbox that it has just run, once it has made its containers but none
of their tasks.  A sentry loads an image only before it runs anything, so the sandbox's is exchanged
for one that waits for those tasks: when the last of them is started, all go on.
"""

from __future__ import annotations

import time

from protos import sandbox_checkpoint_pb2 as pb
from runtime.base.errors import InvalidRequest, InvalidState, NotFound, Unsupported
from runtime.bundle.spec import validate_id
from runtime.task.lifecycle import State
from shim.base import convert
from shim.sandbox.requests import config_in, deadline_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Final, Protocol

    from protos.wkt_pb2 import Any
    from runtime.runsc.config import RunscConfig
    from runtime.sandbox.checkpoint_image import Image
    from runtime.task.container import Container
    from runtime.task.pod import Pod
    from shim.ttrpc.call import Call

    class Sandbox(Protocol):
        """What is used of the Sandbox service, which says what each method does."""

        def sandbox(self, sandbox_id: str) -> Container: ...
        def config_for(self, sandbox_id: str) -> RunscConfig: ...
        def exchange(self, old: Container, image: Image, deadline: float) -> None: ...


#: Seconds for a checkpoint, or a restore, whose caller sets no deadline; memory may be large.
TIMEOUT: Final = 600.0


class PodCheckpoints:
    """The calls by name; each runs on a worker and raises RuntimeFault."""

    def __init__(self, pod: Pod, sandbox: Sandbox) -> None:
        self._pod = pod
        self._sandbox = sandbox
        self.methods: Mapping[str, Callable[[Call], bytes]] = {
            "Checkpoint": self._checkpoint,
            "Restore": self._restore,
        }

    def _checkpoint(self, call: Call) -> bytes:
        """Save the sandbox with all its containers, which go on afterwards as they were."""
        request = pb.CheckpointRequest.FromString(call.payload)
        self._require_allowed(request.sandbox_id)
        sandbox = self._running(request.sandbox_id)
        _check(request.options, request.sandbox_config)
        path = convert.text("output_path", request.output_path)
        named = _by_id((each.id, each.name) for each in request.containers)
        for container_id, name in named.items():
            self._check_named(sandbox, container_id, name)
        for other in self._members(sandbox):
            if other.init.started and other.id not in named:
                raise Unsupported(
                    f"sandbox {sandbox.id!r} can't be saved without its running container "
                    f"{other.id!r}"
                )
        seconds = deadline_of(call, TIMEOUT) - time.monotonic()
        self._pod.checkpoint(sandbox.id, path, exit=False, timeout=seconds)
        return pb.CheckpointResponse().SerializeToString()

    def _restore(self, call: Call) -> bytes:
        """Have the sandbox wait for the containers of an image, and go on with it then."""
        from runtime.sandbox import checkpoint

        request = pb.RestoreRequest.FromString(call.payload)
        self._require_allowed(request.sandbox_id)
        sandbox = self._sandbox.sandbox(request.sandbox_id)
        sandbox.require_created()
        _check(request.options, request.sandbox_config)
        path = convert.text("checkpoint_path", request.checkpoint_path)
        named = _by_id((each.id, each.name) for each in request.containers)
        if self._members(sandbox):
            raise InvalidState("restore", f"sandbox {sandbox.id!r}", "in use by containers")
        if sandbox.made_with is None or sandbox.spec is None:
            raise InvalidState("restore", f"sandbox {sandbox.id!r}", "being created")
        image = checkpoint.load(path, sandbox.made_with[0].generation)
        try:
            _check_names(image, named.values())
            checkpoint.check_fit(image, checkpoint.describe(sandbox.spec, False), True)
            self._sandbox.exchange(sandbox, image, deadline_of(call, TIMEOUT))
        except BaseException:
            image.close()
            raise
        return pb.RestoreResponse(
            containers=[pb.RestoredContainer(name=each.name) for each in request.containers]
        ).SerializeToString()

    def _require_allowed(self, sandbox_id: str) -> None:
        if not self._sandbox.config_for(sandbox_id).pod_checkpoint:
            raise Unsupported("checkpoints of pods are off: see the option pod_checkpoint")

    def _running(self, sandbox_id: str) -> Container:
        sandbox = self._sandbox.sandbox(sandbox_id)
        if not sandbox.init.started:
            state = sandbox.init.state.value
            raise InvalidState("checkpoint", f"sandbox {sandbox_id!r}", state)
        return sandbox

    def _members(self, sandbox: Container) -> list[Container]:
        return [each for each in self._pod.all() if each is not sandbox]

    def _check_named(self, sandbox: Container, container_id: str, name: str) -> None:
        container = self._pod.container(container_id)
        if container is sandbox:
            raise InvalidRequest("containers", f"{container_id!r} is the sandbox itself")
        if container.init.state not in (State.RUNNING, State.PAUSED):
            raise InvalidState("checkpoint", container.init.subject, container.init.state.value)
        known = container.spec.container_name if container.spec is not None else ""
        if known != name:
            raise InvalidRequest(
                "containers", f"{container_id!r} is called {known!r}, not {name!r}"
            )


def _check(options: Mapping[str, str], config: Any) -> None:
    """Refuse what is asked besides: nothing may be left aside silently."""
    for key in options:
        raise InvalidRequest("options", f"{key[:100]!r} is not known")
    config_in("sandbox_config", config)


def _by_id(containers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The containers' names by their ids.  Raises InvalidRequest."""
    found: dict[str, str] = {}
    for container_id, name in containers:
        validate_id("container", container_id)
        if not name:
            raise InvalidRequest("containers", f"{container_id!r} has no name")
        if container_id in found or name in found.values():
            raise InvalidRequest("containers", f"{container_id!r} ({name!r}) is there twice")
        found[container_id] = name
    if not found:
        raise InvalidRequest("containers", "none is named")
    return found


def _check_names(image: Image, wanted: Iterable[str]) -> None:
    if image.about is None:
        raise NotFound("checkpoint", image.path, f"image {image.path} tells nothing of a pod")
    saved = sorted(each.name for each in image.about.containers[1:])
    asked = sorted(wanted)
    if saved != asked:
        raise InvalidRequest(
            "containers",
            f"image {image.path} has {', '.join(saved) or 'none'}, not {', '.join(asked)}",
        )
