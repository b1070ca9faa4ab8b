"""A pod's root container gets the program by which port forwarding works, as a mount.

The sentry has a call of its own, PortForward, which isn't used: what a program is sent faster than
it reads is lost in it, it ends as a whole with either direction, it knows IPv4 only, and before
release-20260126 it makes the sentry panic (gVisor's runsc/boot/portforward).
"""

from __future__ import annotations

import os

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
#: Where the program is kept if programs can't be run from the cache.
_OTHER = "/var/lib/containerd-shim-gvisor"

_log = get_logger("port_forward")


def add(spec: Spec, image: Image | None, cache_dir: str) -> tuple[Spec, bool]:
    """The spec of a sandbox's first container with the mount, and whether it got it.

    A pod gets it that CRI made and that has a network namespace.  What is restored from ``image``
    must have the mounts that it had.  Never raises: the pod is good without.
    """
    if spec.container_type != "sandbox" or not spec.netns_path:
        return spec, False
    if image is not None and not _had_it(image):
        return spec, False
    try:
        folder = forward_program.install((os.path.join(cache_dir, "inside"), f"{_OTHER}/inside"))
    except (RuntimeFault, OSError) as fault:
        _log.info("port_forward.unavailable", error=str(fault))
        return spec, False
    mount = {
        "destination": FOLDER,
        "type": "bind",
        "source": folder,
        "options": ["bind", "ro", "nosuid", "nodev"],
    }
    return with_mounts(spec, [*(spec.raw.get("mounts") or []), mount]), True


def _had_it(image: Image) -> bool:
    return image.about is not None and FOLDER in image.about.containers[0].mounts
