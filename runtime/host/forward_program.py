"""The program that connects a sandbox's loopback to pipes, as a file that a sandbox can run.

Its code is C of the native module (``runtime/native/linux.c``); ``host/elf.py`` makes a file of it.
"""

from __future__ import annotations

import os

from runtime.base import files
from runtime.base.errors import Unsupported
from runtime.host import linux

#: The file's name in its folder.
NAME = "forward"
#: Where that may be: the second if programs can't be run from the first.  Not in the shim's own
#: folder, which only root can enter: a gofer in a pod's user namespace has to.
FOLDERS = ("/run/containerd-shim-gvisor-inside", "/var/lib/containerd-shim-gvisor-inside")
#: What the name of the same as an image of a file system ends with.
IMAGE = ".erofs"
#: What the folder has for a pod of which it is the root: places to mount on.
_MOUNT_POINTS = ("dev", "etc", "proc", "sys", "tmp")


def program() -> bytes:
    """The whole file.  Raises Unsupported on a machine for which there is none."""
    from runtime.host import elf

    return elf.executable(*linux.forward_code(), what="forwarding a port")


def install(folders: tuple[str, ...]) -> str:
    """The first of ``folders`` from which programs can be run, with the program in it.

    It is made where it isn't there, with the file that anybody may read and nobody but its owner
    write, and beside it the image of a file system with the same content.
    Raises OSError, Unsupported.
    """
    from runtime.host import erofs

    data = program()
    for folder in folders:
        os.makedirs(folder, 0o755, exist_ok=True)
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            continue
        for name in _MOUNT_POINTS:
            os.makedirs(os.path.join(folder, name), 0o755, exist_ok=True)
        path = os.path.join(folder, NAME)
        if files.read_bounded(path, 1 << 20) != data:
            files.replace_file(path, data, 0o755)
            os.chmod(path, 0o755)  # whatever the umask
        image = erofs.image({NAME: data}, _MOUNT_POINTS)
        if files.read_bounded(folder + IMAGE, 1 << 20) != image:
            files.replace_file(folder + IMAGE, image)
        return folder
    raise Unsupported(f"running programs from {' or '.join(folders)}, as they are mounted noexec")
