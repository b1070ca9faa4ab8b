"""Mounts the program for port forwarding into a pod's root container.

The sentry has a call for this, PortForward, which isn't used: it loses what is sent faster than
the program reads, it closes both directions when either ends, it knows IPv4 only, and before
release-20260126 it makes the sentry panic (gVisor's runsc/boot/portforward).
"""

from __future__ import annotations

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from runtime.bundle.spec import with_mounts
from runtime.host import forward_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtime.bundle.spec import Spec
    from runtime.sandbox.checkpoint_image import Image

#: In /dev, which is a file system of the sentry's: a mount point can be made there in any case.
FOLDER: Final = "/dev/.gvisor-shim"
#: The program, as it is called in the container.
PROGRAM: Final = f"{FOLDER}/{forward_program.NAME}"

_log = get_logger("port_forward")


def add(
    spec: Spec, image: Image | None, folders: tuple[str, ...] = forward_program.FOLDERS
) -> tuple[Spec, str]:
    """The spec of a sandbox's first container with the mount, and what the program is called there.

    Its name is empty if it isn't there; a pod whose root has it needs no mount.

    A pod gets it that CRI made and that has a network namespace.  What is restored from ``image``
    must have the mounts that it had.  Never raises: the pod is good without.
    """
    if spec.container_type != "sandbox" or not spec.netns_path:
        return spec, ""
    if spec.root_path in folders:
        return spec, f"/{forward_program.NAME}"
    if image is not None and not _had_it(image):
        return spec, ""
    try:
        folder = forward_program.install(folders)
    except (RuntimeFault, OSError) as fault:
        _log.info("port_forward.unavailable", error=str(fault))
        return spec, ""
    mount = {
        "destination": FOLDER,
        "type": "bind",
        "source": folder,
        "options": ["bind", "ro", "nosuid", "nodev"],
    }
    return with_mounts(spec, [*(spec.raw.get("mounts") or []), mount]), PROGRAM


def program_in(spec: Spec, folders: tuple[str, ...] = forward_program.FOLDERS) -> str:
    """What the program is called in a sandbox whose first container was run by ``spec``.

    Empty if it isn't there.
    """
    if spec.root_path in folders:
        return f"/{forward_program.NAME}"
    there = any(each.destination == FOLDER and each.source in folders for each in spec.mounts)
    return PROGRAM if there else ""


def _had_it(image: Image) -> bool:
    return image.about is not None and FOLDER in image.about.containers[0].mounts
