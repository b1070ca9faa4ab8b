"""Checkpoint and restore: what is saved of a sandbox, and whether an image fits a container.

Owns the decisions around the sentry's calls; ``checkpoint_image.py`` owns the files.  A sandbox is
saved and restored as a whole, with all its containers: that is how gVisor works.  Needs no
reactor: :func:`save` and :func:`load` also serve a sandbox that another process made.
"""

from __future__ import annotations

import os

from runtime.base.errors import (
    InvalidRequest,
    InvalidState,
    RuntimeFault,
    SandboxGone,
    Unreachable,
    Unsupported,
)
from runtime.base.record import Record
from runtime.sandbox.checkpoint_image import (
    COMPRESSIONS,
    FLATE,
    NONE,
    About,
    Draft,
    Image,
    SavedContainer,
)
from runtime.sandbox.checkpoint_image import load as load_image
from runtime.sandbox.gofer_mounts import filestore_name, is_gofer_mount, remove_filestores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from runtime.bundle.spec import Spec
    from runtime.runsc.control import Control
    from runtime.runsc.release import Generation
    from runtime.sandbox.sandbox import Sandbox

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
#: Seconds for thawing a sandbox.
RESUME_TIMEOUT = 10.0
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


class Original(Record):
    """A sandbox that is to be saved, as it stands."""

    id: str
    control: Control
    generation: Generation
    #: All that it has, in the order of their creation.
    containers: tuple[SavedContainer, ...]
    #: How many processes run in it besides.
    execs: int = 0
    #: Whether it is frozen.
    paused: bool = False
    #: What the sentry was told of its network, for a restore.
    network: Mapping[str, Any] | None = None


def save(
    original: Original,
    path: str,
    *,
    leave_running: bool,
    compression: str = "",
    timeout: float = TIMEOUT,
    end: Callable[[], None] | None = None,
) -> None:
    """Write an image of a sandbox into directory ``path``, which is made if it is missing.

    Compression is ``flate-best-speed`` (the default) or ``none``, which puts the memory in files
    of its own.  Blocks for up to ``timeout`` seconds.

    Afterwards the sandbox is as it was, unless ``leave_running`` is false: then the sentry is at
    its end, with status 0.  ``end`` is another way to bring that about; the sandbox is frozen
    when it is called.  An old sentry ends by itself, whether it could save or not.

    Raises AlreadyExists if there is an image in ``path`` (it stays as it is), Unsupported for
    what this runsc can't do, InvalidRequest, and what the call raises; then nothing of the new
    image is left, and the sandbox is as it was.
    """
    control, generation = original.control, original.generation
    modern = control.restores_pods()
    if not modern:
        _check_old(generation.version, original.containers, leave_running, compression)
    if original.execs and not generation.saves_without_execs:
        # It would save them, with descriptors that no restore can give them.
        raise InvalidState("checkpoint", f"sandbox {original.id!r}", "running execs")
    # A sentry that is to end does so even if it could not save, so it is never asked for that
    # where it can go on: what is frozen does nothing that the image doesn't know.
    freeze = modern and not leave_running and not original.paused
    if freeze:
        control.pause(timeout)
    try:
        _write(
            control,
            path,
            About(
                runsc=generation.version,
                compression=compression or FLATE,
                containers=original.containers,
                sandbox_id=original.id,
                network=original.network,
            ),
            modern or leave_running,
            timeout,
        )
    except BaseException:
        if freeze:
            resume(control)
        raise
    if leave_running:
        return
    if modern and end is not None:
        end()
        return
    if modern:
        end_frozen(control, original.id, timeout)
    elif original.paused:
        resume(control)


def _check_old(
    version: str,
    containers: Sequence[SavedContainer],
    leave_running: bool,
    compression: str,
) -> None:
    """Raise for what a sentry can't do that doesn't go on after a checkpoint."""
    if len(containers) > 1:
        raise Unsupported(f"runsc {version} can't checkpoint a pod of several containers")
    if leave_running:
        raise Unsupported(
            f"runsc {version} ends a sandbox that it checkpoints: it must be asked to exit"
        )
    if compression == NONE:
        raise Unsupported(f"runsc {version} always compresses its checkpoints")


def _write(control: Control, path: str, about: About, resume: bool, timeout: float) -> None:
    paged = about.compression == NONE
    with Draft(path, paged) as draft:
        control.checkpoint(
            about.sandbox_id,
            draft.fds,
            compression=about.compression,
            paged=paged,
            leave_running=resume,
            timeout=timeout,
        )
        draft.commit(about)


def end_frozen(control: Control, sandbox_id: str, timeout: float) -> None:
    """Have a frozen sentry end by itself, so that whoever waits for it hears of no failure.

    There is no other call for it than a checkpoint, so this one goes nowhere.
    """
    _end(control, sandbox_id, timeout)
    # All processes were killed, but those that are frozen don't notice.
    resume(control)


def _end(control: Control, sandbox_id: str, timeout: float) -> None:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        control.checkpoint(
            sandbox_id, (fd,), compression=NONE, paged=False, leave_running=False, timeout=timeout
        )
    except (SandboxGone, Unreachable):
        return  # its connection ends a little before it does
    finally:
        os.close(fd)


def resume(control: Control) -> None:
    """Have a frozen sandbox go on, if it is there.  Never raises."""
    try:
        control.resume(RESUME_TIMEOUT)
    except RuntimeFault:
        return  # it is gone, and so is told elsewhere


def save_sandbox(
    sandbox: Sandbox,
    path: str,
    *,
    exit: bool,
    execs: int,
    timeout: float,
    ending: Callable[[], None] = lambda: None,
) -> None:
    """Save all containers of a sandbox of ours in directory ``path``; with ``exit`` it ends then.

    ``execs`` is how many processes run in it besides; ``ending`` is called before the sandbox is
    ended.  Raises as :func:`save` does, Unsupported on the host's network, InvalidState.
    Otherwise the sandbox is as it was, running or paused, whether this raises or not.
    """
    if sandbox.restoring:
        raise InvalidState("checkpoint", f"sandbox {sandbox.id!r}", "being restored")
    if sandbox.network == "host":
        raise Unsupported(f"sandbox {sandbox.id!r} on the host's network can't be checkpointed")
    members = sandbox.members()
    root = members[0]

    def end() -> None:
        ending()
        sandbox.kill()

    save(
        Original(
            id=sandbox.id,
            control=sandbox.control,
            generation=root.driver.generation,
            containers=tuple(describe(each.spec, each.tty) for each in members),
            execs=execs,
            paused=sandbox.paused,
            network=sandbox.network_argument,
        ),
        path,
        leave_running=not exit,
        compression=choose_compression(root.spec.annotations, root.config.checkpoint_compression),
        timeout=timeout,
        end=end,
    )


def load(path: str, generation: Generation, go_on: Callable[[], None] = lambda: None) -> Image:
    """Open and check the image in directory ``path``; the caller closes it.

    It may be long: ``go_on`` is called again and again, and may raise.

    Raises NotFound if there is none, InvalidRequest if it is truncated, damaged, or of a runsc
    whose images this one can't read.
    """
    image = load_image(path, generation.version, go_on)
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
