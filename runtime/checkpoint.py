"""Checkpoint and restore: what is saved of a sandbox, and whether an image fits what is to be.

Owns the decisions around the sentry's calls.  The files are ``checkpoint_image.py``'s part.  A
sandbox is saved and restored as a whole, with all its containers: that is how gVisor works.
Needs no reactor: :func:`save` and :func:`load` serve a sandbox that another process made.
"""

from __future__ import annotations

import os

from runtime.checkpoint_image import COMPRESSIONS, FLATE, NONE, About, Draft, Image, SavedContainer
from runtime.checkpoint_image import load as load_image
from runtime.errors import InvalidRequest, InvalidState, RuntimeFault, Unsupported
from runtime.gofer_mounts import filestore_name, is_gofer_mount, remove_filestores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.control import Control
    from runtime.generation import Generation
    from runtime.sandbox import Sandbox
    from runtime.spec import Spec

__all__ = (
    "About",
    "Image",
    "SavedContainer",
    "check_fit",
    "describe",
    "load",
    "save",
    "save_sandbox",
)

#: Seconds for saving or loading a sandbox whose caller sets no limit; memory may be large.
TIMEOUT = 600.0
#: The annotation by which a container's creator chooses how its checkpoints are compressed.
COMPRESSION_ANNOTATION = "dev.gvisor.internal.checkpoint.compression"


def describe(spec: Spec, terminal: bool) -> SavedContainer:
    """What an image is to tell of a container."""
    return SavedContainer(
        name=spec.container_name,
        args=tuple(spec.process.args),
        mounts=tuple(mount.destination for mount in spec.mounts if is_gofer_mount(mount)),
        terminal=terminal,
    )


def choose_compression(annotations: Mapping[str, str], configured: str) -> str:
    """How to compress: the annotation, else the operator's choice, else "" for the default.

    Raises InvalidRequest.
    """
    chosen = annotations.get(COMPRESSION_ANNOTATION, configured)
    if chosen and chosen not in COMPRESSIONS:
        raise InvalidRequest(
            COMPRESSION_ANNOTATION, f"{chosen[:50]!r} is none of {', '.join(COMPRESSIONS)}"
        )
    return chosen


def save(
    control: Control,
    path: str,
    *,
    generation: Generation,
    sandbox_id: str,
    containers: Sequence[SavedContainer],
    leave_running: bool,
    execs: int = 0,
    compression: str = "",
    network: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Write an image of a sandbox into directory ``path``, which is made if it is missing.

    ``containers`` are all that the sandbox has, in the order of their creation; ``execs`` is how
    many processes run in it besides.  Compression is ``flate-best-speed`` (the default) or
    ``none``, which puts the memory in files of its own.  Unless ``leave_running``, the sentry
    ends by itself afterwards, with status 0.  Blocks for up to ``timeout`` seconds.

    Raises AlreadyExists if there is an image in ``path`` (it stays as it is), Unsupported for
    what this runsc can't do, InvalidRequest, and what the call raises; then nothing of the new
    image is left.
    """
    modern = control.restores_pods()
    version = generation.version
    if not modern:
        if len(containers) > 1:
            raise Unsupported(f"runsc {version} can't checkpoint a pod of several containers")
        if leave_running:
            raise Unsupported(
                f"runsc {version} ends a sandbox that it checkpoints: it must be asked to exit"
            )
        if compression == NONE:
            raise Unsupported(f"runsc {version} always compresses its checkpoints")
        if execs:
            # It would save them, with descriptors that a restore can't give them.
            raise InvalidState("checkpoint", f"sandbox {sandbox_id!r}", "running execs")
    compression = compression or FLATE
    paged = compression == NONE
    with Draft(path, paged) as draft:
        control.checkpoint(
            sandbox_id,
            draft.fds,
            compression=compression,
            paged=paged,
            leave_running=leave_running,
            timeout=timeout,
        )
        draft.commit(
            About(
                runsc=version,
                compression=compression,
                containers=tuple(containers),
                sandbox_id=sandbox_id,
                network=network,
            )
        )


def save_sandbox(sandbox: Sandbox, path: str, *, exit: bool, execs: int, timeout: float) -> None:
    """Save all containers of a sandbox of ours in directory ``path``; with ``exit`` it ends then.

    ``execs`` is how many processes run in it besides.  Raises as :func:`save` does, Unsupported
    on the host's network, InvalidState.  Otherwise the sandbox is as it was, running or paused,
    whether this raises or not.
    """
    if sandbox.restoring:
        raise InvalidState("checkpoint", f"sandbox {sandbox.id!r}", "being restored")
    if sandbox.network == "host":
        raise Unsupported(f"sandbox {sandbox.id!r} on the host's network can't be checkpointed")
    members = sandbox.members()
    root = members[0]
    save(
        sandbox.control,
        path,
        generation=root.driver.generation,
        sandbox_id=sandbox.id,
        containers=[describe(each.spec, each.tty) for each in members],
        leave_running=not exit,
        execs=execs,
        compression=choose_compression(root.spec.annotations, root.config.checkpoint_compression),
        network=sandbox.network_argument,
        timeout=timeout,
    )
    if exit and sandbox.paused:
        # The sentry has killed all processes, but those that are frozen don't notice.
        try:
            sandbox.resume()
        except RuntimeFault:
            return  # it is gone already


def load(path: str, generation: Generation) -> Image:
    """Open and check the image in directory ``path``; the caller closes it.

    Raises NotFound if there is none, InvalidRequest if it is truncated, damaged, or of a runsc
    whose images this one can't read.
    """
    image = load_image(path, generation.version)
    try:
        counted = "container_count" in image.header
        if image.about and counted and image.containers != len(image.about.containers):
            raise InvalidRequest("checkpoint", f"image {path} is damaged: container count")
    except RuntimeFault:
        image.close()
        raise
    return image


def check_fit(image: Image, container: SavedContainer, is_root: bool) -> None:
    """Raise InvalidRequest if ``container`` can't be one of those in the image.

    The sentry would find out as well, but dies of it.  An image without our file fits anything.
    """
    about = image.about
    if about is None:
        return
    if is_root:
        found: SavedContainer | None = about.containers[0]
    else:
        names = [each.name for each in about.containers[1:]]
        if container.name and container.name not in names:
            raise InvalidRequest(
                "checkpoint",
                f"image {image.path} has no container {container.name!r}, but "
                + (", ".join(map(repr, names)) or "a root container only"),
            )
        found = next((e for e in about.containers[1:] if e.name == container.name), None)
    if found is None or not container.name:
        # Without names it is the order of creation that counts, which only the sentry sees.
        found = about.containers[0] if is_root else None
    if found is None:
        return
    _same(image, "terminal", found.terminal, container.terminal)
    _same(image, "mounts", sorted(found.mounts), sorted(container.mounts))


def remove_leftovers(image: Image, sandbox_id: str, root_path: str) -> None:
    """Remove the saved container's filestore from the root file system of its successor.

    It is there where the snapshot's changes were saved as well; what was in it is in the image.
    ``sandbox_id`` is the new sandbox's.  Raises Failed.
    """
    ids = {sandbox_id}
    if image.about is not None:
        ids.add(image.about.sandbox_id)
    remove_filestores([os.path.join(root_path, filestore_name(each)) for each in sorted(ids)])


def _same(image: Image, what: str, saved: object, wanted: object) -> None:
    if saved != wanted:
        raise InvalidRequest(
            "checkpoint",
            f"image {image.path} was made of a container with {what} {saved}, not {wanted}",
        )
