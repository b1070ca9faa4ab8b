"""A fork of the server, from its first instruction to its end: the call of a launcher, or another.

The launcher's call is answered in two steps, so that it is done once: by this process, which is
told to go on, or by the launcher, which had no answer in time and has hung up.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys
import time

from runtime.base.errors import InvalidRequest
from runtime.base.version import VERSION
from runtime.host import forkservers, linux
from runtime.host.linux import CLONE_NEWNET
from shim.base import arguments
from shim.forkserver import call, caller, likeness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Program = Callable[[Sequence[str]], int]

#: The exit statuses of a fork that was told to end the server, and of one that found it of no use.
END_SERVER, UNLIKE = 3, 4
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class ServerFacts:
    """What the server knows, and each fork of it."""

    def __init__(
        self,
        program: Program,
        socket: str,
        containerd: int,
        package: str,
        identity: tuple[int, ...],
    ) -> None:
        #: What a launcher is called for, by its arguments; its exit status.
        self.program = program
        self.socket = socket
        self.containerd = containerd
        self.package = package
        self.identity = identity
        self.began = time.monotonic()
        self.server = os.getpid()
        self.forks = 0
        #: What the server was given when it was born.
        self.born_with: call.Records = {}


def serve(channel: _socket.socket, peer: int, facts: ServerFacts) -> int:
    """Do what is asked at the other end; the process's exit status."""
    fds: list[int] = []
    try:
        records = call.receive(channel, fds)
    except (InvalidRequest, OSError):
        return 0  # nothing was begun
    if "a" in records:
        return _launched(channel, records, facts)
    if call.NETWORK in records:
        return _network(channel, fds)
    if call.END in records:
        return END_SERVER
    if call.STATUS in records:
        _tell(channel, facts)
    return 0


def _tell(channel: _socket.socket, facts: ServerFacts) -> None:
    values = {
        "pid": facts.server,
        "containerd": facts.containerd,
        "forks": facts.forks,
        "age": int(time.monotonic() - facts.began),
        "version": VERSION,
        "package": facts.package,
    }
    try:
        channel.sendall("".join(f"{name}={value}\n" for name, value in values.items()).encode())
    except OSError:
        pass  # nobody listens any more


# -- a launcher's call -----------------------------------------------------------------------


def _launched(channel: _socket.socket, records: call.Records, facts: ServerFacts) -> int:
    fds: list[int] = []
    argv = [os.fsdecode(each) for each in records["a"]]
    try:
        invocation = arguments.parse(argv[1:])
        if not invocation.action and not invocation.info:
            raise InvalidRequest("action", "is none of ours")
        parent = int(call.only(records, "p"))
        likeness.become(records, facts.born_with)
        _dress(records)
    except likeness.Unlike as unlike:
        forkservers.note_unlike(facts.socket, str(unlike))
        channel.sendall(call.DECLINED)
        return UNLIKE
    except (InvalidRequest, OSError, ValueError, KeyError):
        channel.sendall(call.DECLINED)  # the interpreter will say what is wrong
        return 0
    try:
        channel.sendall(call.READY)
        if call.take(channel, 1, fds) != call.GO or len(fds) != 4:
            return 0  # it became too long, and the launcher does it
        os.fchdir(fds[3])
    except OSError:
        return 0
    channel.settimeout(None)
    _die_with(channel)
    for number in (_STDIN, _STDOUT, _STDERR):
        os.dup2(fds[number], number)
    for fd in fds:
        os.close(fd)
    sys.argv = argv
    caller.launched_by, caller.fork_server = parent, facts.socket
    forkservers.ours = facts.socket
    try:
        status = facts.program(argv[1:])
    except caller.Directly as directly:
        call.give_back(channel, directly.stdin)
        return 0
    channel.sendall(call.status_word(status))
    return 0


def _dress(records: call.Records) -> None:
    """Environment, command line and name as the launcher's, for us and for /proc."""
    # The server has that of its first start, which is the same in all but a value or two.
    told = dict(each.partition(b"=")[::2] for each in records.get("e", ()) if b"=" in each[1:])
    for name in [name for name in os.environb if name not in told]:
        del os.environb[name]
    for name, value in told.items():
        if os.environb.get(name) != value:
            os.environb[name] = value
    try:
        linux.show_arguments(records["a"], records.get("e", ()))
        _name_process(b"containerd-shim")
    except OSError:
        pass  # they are called after the server, then


def _name_process(name: bytes) -> None:
    """Have /proc say that name, of 15 bytes at most; raises OSError."""
    with open("/proc/self/comm", "wb", buffering=0) as file:
        file.write(name)


def _die_with(channel: _socket.socket) -> None:
    """Have the kernel end this process when the launcher is killed: its end hangs up.

    The signal is this process's alone, none that a fork of it gets.
    """
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, fcntl.fcntl(channel, fcntl.F_GETFL) | os.O_ASYNC)


# -- a shim's network ------------------------------------------------------------------------


def _network(channel: _socket.socket, fds: Sequence[int]) -> int:
    """Be the helper in a pod's network namespace; tells of itself by a pidfd."""
    import struct

    from runtime.network import helper

    if len(fds) != 3:
        return 0
    namespace, conversation, errors = fds
    try:
        os.dup2(errors, _STDERR)
        _name_process(b"gvisor-network")  # who counts fork servers must not count this one
        linux.setns(namespace, CLONE_NEWNET)
        pidfd = os.pidfd_open(os.getpid())
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", pidfd))]
        channel.sendmsg([call.READY], rights)
    except OSError:
        return 0
    for fd in (namespace, errors, pidfd, channel.detach()):
        os.close(fd)
    helper.main(conversation)
    return 0
