"""Finds the program that called us, containerd: its release and its OOM score are read there.

It is our parent, except in a fork of the fork server, whose parent is the server.  There the
launcher, which is containerd's child in our place, tells its pid.
"""

from __future__ import annotations

import os


class Directly(Exception):
    """What a fork of the fork server raises when its call is to be done without the server."""

    def __init__(self, stdin: bytes) -> None:
        super().__init__("to be done without the fork server")
        #: What was read, and has to be read again.
        self.stdin = stdin


#: In the environment: says whether there are to be fork servers.  Off wins over all options.
SWITCH = "GVISOR_SHIM_FORK_SERVER"
#: As the launcher has it (shim/native/launcher.c).
OFF = ("off", "0", "false", "no")
ON = ("on", "1", "true", "yes")
#: What holds where nobody says anything.
DEFAULT = True

#: In a fork of the fork server: the pid of containerd, and the server's socket.
launched_by = 0
fork_server = ""


def wants_server(option: bool | None) -> bool:
    """Whether a fork server is wanted, by the environment and the operator's option."""
    said = os.environ.get(SWITCH, "")
    if said in OFF:
        return False
    return option if option is not None else said in ON or DEFAULT


def parent() -> int:
    """The pid of the process that called us."""
    return launched_by or os.getppid()
