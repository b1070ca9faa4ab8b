"""``start``: find the pod's shim or become it, and tell containerd where it listens.

Owns the bootstrap protocol of containerd 1.6 to 2.3+ (``pkg/shim`` and ``core/runtime/v2``),
the files that a shim leaves in the bundle for containerd, and the fork of the daemon.  Forking
without exec halves the time until the daemon serves; it is safe because nothing here starts a
thread.  Whatever this module imports is in every daemon's memory, and on every pod's start.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import errno
import os
import select
import sys
import time

from runtime.base import fastjson, files
from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, RuntimeFault, reason
from runtime.base.record import Record
from shim.base import sockets
from shim.base.arguments import check_id
from shim.daemon_args import DaemonArgs
from shim.forkserver import caller
from shim.ttrpc import protobuf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from shim.base.arguments import Invocation

MAX_STDIN = 10 << 20
MAX_SPEC = 10 << 20
_STDIN_TIMEOUT = 10.0
#: Where `start` keeps the options for a daemon that is run directly.
OPTIONS_FILE = "runtime-options.pb"
#: In order of precedence: our own label, runc's, and the pod's id as CRI and CRI-O write it.
_GROUP_LABELS = ("io.containerd.gvisor.v2.group", "io.containerd.runc.v2.group")
_CONTAINER_TYPES = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_POD_LABELS = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
#: What systemd told containerd about containerd; meant for no one below it.
_FOREIGN_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
_SIGKILL, _SIGPIPE, _NSIG = 9, 13, 32
#: SIGHUP, SIGINT, SIGUSR1, SIGTERM: what the daemon handles, and would die of until it does.
HELD_BACK = (1, 2, 10, 15)
#: A containerd log level from here up (Go's log/slog) is quieter than info.
_SLOG_LEVELS = ((-8, "trace"), (-4, "debug"), (0, "info"), (4, "warn"))


class Params(Record):
    """What stdin said: BootstrapParams, or of it only the options."""

    options: tuple[str, bytes] = ("", b"")
    #: Set if stdin was a BootstrapParams, so that the reply must be a BootstrapResult.
    modern: bool = False
    log_level: int = 0
    version: str = ""
    ttrpc_address: str = ""
    grpc_address: str = ""
    binary: str = ""
    socket_dir: str = ""


# -- stdin ----------------------------------------------------------------------------------


def read_stdin(fd: int = 0) -> bytes:
    """All of stdin; nothing if it is closed or a terminal.

    Raises InvalidRequest beyond 10 MiB, DeadlineExceeded if its end doesn't come.
    """
    chunks: list[bytes] = []
    size = 0
    deadline = time.monotonic() + _STDIN_TIMEOUT
    try:
        if os.isatty(fd):
            return b""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DeadlineExceeded("read options from stdin", _STDIN_TIMEOUT)
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_STDIN:
                raise InvalidRequest("stdin", f"is larger than {MAX_STDIN} bytes")
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    return b"".join(chunks)


def parse_stdin(data: bytes, container_id: str, namespace: str) -> Params:
    """Tell BootstrapParams (containerd 2.3+) from the bare options that came before it.

    Both begin with two strings, so each decodes as the other; containerd's own shims take the
    bytes as BootstrapParams only if id and namespace are those of the command line, and so do
    we.  Raises InvalidRequest if they are neither.
    """
    if not data:
        return Params()
    try:
        params = _parse_params(data)
    except protobuf.Malformed:
        pass
    else:
        if params.pop("id") == container_id and params.pop("namespace") == namespace:
            return Params(modern=True, **params)
    try:
        return Params(options=protobuf.parse_any(data))
    except protobuf.Malformed as error:
        raise InvalidRequest(
            "stdin", f"neither bootstrap parameters nor options: {error}"
        ) from None


def _parse_params(data: bytes) -> dict[str, Any]:
    texts = {
        1: "id",
        2: "namespace",
        4: "version",
        5: "ttrpc_address",
        6: "grpc_address",
        7: "binary",
        9: "socket_dir",
    }
    found: dict[str, Any] = {"id": "", "namespace": ""}
    for field, value in protobuf.fields(data):
        if field in texts:
            found[texts[field]] = protobuf.text(value)
        elif field == 3:
            found["log_level"] = protobuf.number(value)
        elif field == 8:
            for inner, content in protobuf.fields(protobuf.blob(value)):
                if inner == 1:
                    extension = protobuf.parse_any(protobuf.blob(content))
                    # Options messages of all runtimes are called so; other extensions are not.
                    if extension[0].endswith("Options"):
                        found["options"] = extension
    return found


# -- the group ------------------------------------------------------------------------------


def read_annotations(bundle: str) -> Mapping[str, object]:
    """The annotations in the bundle's config.json; a sandbox without a spec has none.

    Raises InvalidRequest if the file is there and is no spec.
    """
    path = os.path.join(bundle, "config.json")
    data = files.read_bounded(path, MAX_SPEC)
    if data is None or b'"annotations"' not in data:
        return {}
    try:
        spec = fastjson.loads(data)
    except ValueError as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest("config.json", f"is not JSON: {why}") from None
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def group_of(annotations: Mapping[str, object], container_id: str, *, grouping: bool = True) -> str:
    """The id that all containers of one shim share.

    With ``grouping`` off the explicit labels are ignored.  The pod's id never is: the shim that
    runs the sandbox's sentry is the only one that can add a container to it.  Raises
    InvalidRequest if the id could name another namespace's group.
    """
    for label in (*_GROUP_LABELS, *_POD_LABELS) if grouping else _POD_LABELS:
        group = annotations.get(label)
        if isinstance(group, str) and group:
            return check_id(f"annotation {label}", group)
    return container_id


# -- the process ----------------------------------------------------------------------------


def _is_member(annotations: Mapping[str, object], container_id: str, group: str) -> bool:
    """Whether this is a container of a pod whose sandbox must be there already."""
    return group != container_id and any(
        annotations.get(key) == "container" for key in _CONTAINER_TYPES
    )


def join_cgroup(group: str, mount_point: str = "/sys/fs/cgroup") -> None:
    """Move this process, and so the daemon, into an existing cgroup.

    On cgroup v1 into that of each controller that has it.  Raises InvalidRequest for an odd
    path, Failed where it can't be joined; both are fatal (containerd's runc shim does the same).
    """
    if ".." in group.split("/"):
        raise InvalidRequest("shim_cgroup", f"{group!r} contains ..")
    relative = group.strip("/")
    if os.path.exists(os.path.join(mount_point, "cgroup.controllers")):
        hierarchies = [mount_point]
    else:
        with os.scandir(mount_point) as entries:
            hierarchies = [entry.path for entry in entries if not entry.is_symlink()]
    joined = False
    for hierarchy in hierarchies:
        procs = os.path.join(hierarchy, relative, "cgroup.procs")
        try:
            fd = os.open(procs, os.O_WRONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise Failed(f"join cgroup {procs}: {reason(error)}") from None
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise Failed(f"join cgroup {procs}: {reason(error)}") from None
        finally:
            os.close(fd)
        joined = True
    if not joined:
        raise Failed(f"join cgroup {group}: no such cgroup below {mount_point}")


def raise_oom_score() -> None:
    """Make the kernel prefer us over containerd: its score and one (``AdjustOOMScore``).

    Lowering is impossible without CAP_SYS_RESOURCE, raising always works; failure is harmless.
    """
    for parent in (caller.parent(), os.getpid()):
        try:
            with open(f"/proc/{parent}/oom_score_adj", "rb", buffering=0) as file:
                score = int(file.read(16))
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
                file.write(b"%d" % min(1000, score + 1))
            return
        except (OSError, ValueError):
            continue


def clean_environment() -> None:
    """Drop what systemd meant for containerd, lest a container notifies or listens for it."""
    for name in list(os.environ):
        if name in _FOREIGN_ENVIRONMENT or name.startswith("LISTEN_"):
            del os.environ[name]


def _create_core_domain() -> None:
    """Give the shim and its children a core scheduling domain of their own (SCHED_CORE)."""
    from shim import paths

    paths.complete("_cffi_backend")
    from runtime.host import linux

    try:
        linux.create_core_scheduling()
    except OSError:
        pass  # a kernel without it; containerd's shim goes on as well


def _daemonize(keep: int) -> None:
    """In the child: a session of its own, default signals, no descriptors but stdio and ``keep``.

    containerd waits until the last copy of its pipe is closed, so that comes first.  The signals
    in ``HELD_BACK`` wait until the daemon handles them.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing itself
    os.setsid()
    for number in range(1, _NSIG):
        if number != _SIGPIPE and _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, HELD_BACK)
    try:
        # ps and pgrep -x would know it by the interpreter's name.
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(b"containerd-shim")
    except OSError:
        pass


def run_daemon(args: DaemonArgs) -> NoReturn:
    """Run the daemon in this process until its end.  Never returns, never raises."""
    status = 1
    path = sockets.path_of(args.socket_address)
    identity = sockets.identity(path)
    try:
        from shim import paths

        if not caller.fork_server:
            paths.complete(*paths.DEPENDENCIES)
        from shim import daemon

        status = daemon.main(args)
    except BaseException as error:
        # The daemon reports what happens to it; this is for what keeps it from doing so.
        _report_crash(args, error)
        try:
            sockets.remove_if_same(path, identity)
        except Exception as left:
            _report_crash(args, left)
    finally:
        os._exit(status)


def _report_crash(args: DaemonArgs, error: BaseException) -> None:
    """One line to containerd's log, as far as that is possible."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    text = fastjson.quote(f"{type(error).__name__}: {error}"[:1000])
    line = f'level=error msg="daemon.crashed" id={args.id} error={text} at={where}\n'
    try:
        fd = os.open(
            os.path.join(args.bundle, "log"),
            os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW,
        )
    except OSError:
        return
    try:
        os.write(fd, line.encode("utf-8", "replace"))
    except OSError:
        pass
    finally:
        os.close(fd)


# -- start ----------------------------------------------------------------------------------


def format_reply(params: Params, address: str, version_known: str) -> bytes:
    """The reply in the form that this containerd understands.

    To BootstrapParams a BootstrapResult; version 3 in JSON where containerd is known to want it;
    else the bare address, which every release takes for version 2.
    """
    from shim.containerd_version import accepts_version_3

    if params.modern:
        return (
            protobuf.number_field(1, 3)
            + protobuf.bytes_field(2, address)
            + protobuf.bytes_field(3, "ttrpc")
        )
    if accepts_version_3(version_known):
        return b'{"version":3,"address":%s,"protocol":"ttrpc"}' % fastjson.quote(address).encode()
    return address.encode()


def _learn_version(binary: str) -> str:
    """Ask containerd for its version.  Costs little here: the daemon is getting ready meanwhile."""
    from shim.containerd_version import learn_version

    try:
        return learn_version(binary)
    except (RuntimeFault, OSError):
        return ""  # version 2, which is slower and always right


def _log_level(params: Params, debug: bool) -> str:
    """containerd's level: BootstrapParams name it; without them ``-debug`` alone tells of it."""
    if debug and not params.modern:
        return "debug"
    for bound, name in _SLOG_LEVELS:
        if params.log_level <= bound:
            return "debug" if debug and bound >= 0 else name
    return "error"


def start(call: Invocation, reply: Callable[[bytes], None]) -> None:
    """Reply with the address of the group's shim, which is forked off if none runs yet.

    Returns in the parent, after ``reply``; the daemon never returns.  Descriptors 1 and 2 are
    the null device by now.  Raises RuntimeFault or OSError, and then no daemon and no socket
    of ours is left.
    """
    check_id("-id", call.id)
    check_id("-namespace", call.namespace)
    stdin = read_stdin()
    params = parse_stdin(stdin, call.id, call.namespace)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    bundle = os.getcwd()
    clean_environment()
    annotations = read_annotations(bundle)
    from shim.base.options import start_options

    wanted = start_options(*params.options)
    forks = caller.wants_server(wanted.fork_server)
    if caller.fork_server and not forks:
        raise caller.Directly(stdin)
    server = sys._xoptions.get("server", "")
    if forks and isinstance(server, str) and server:
        from shim.forkserver import behind

        # Before anything of this process changes for the daemon; it begins when this one ends.
        behind.prepare(server, call.publish_binary or params.binary, "shim.__main__")
    group = group_of(annotations, call.id, grouping=wanted.grouping)
    grpc_address = call.address or params.grpc_address
    binary = call.publish_binary or params.binary
    directory = params.socket_dir or sockets.DEFAULT_DIR
    path = sockets.socket_path(directory, grpc_address, call.namespace, group)
    address = sockets.SCHEME + path
    version: str | None = params.version
    if not params.modern:
        from shim.containerd_version import known_version

        version = known_version()

    if params.options[0]:
        options_file = os.path.join(bundle, OPTIONS_FILE)
        files.replace_file(options_file, protobuf.any_message(*params.options))
    os.makedirs(directory, 0o700, exist_ok=True)
    with files.DirectoryLock(directory):
        if _is_member(annotations, call.id, group) and not sockets.is_served(path):
            # A shim of its own would be of no use to it, and nobody would ever end that.
            raise Failed(f"the shim of pod {group} is gone")
        listener = sockets.listen(path)
        try:
            files.replace_file(os.path.join(bundle, "address"), address.encode())
        except BaseException:
            if listener is not None:
                sockets.remove(path)
                os.close(listener)
            raise
    if listener is None:
        reply(format_reply(params, address, version or ""))
        return
    child = 0
    try:
        if wanted.shim_cgroup:
            join_cgroup(wanted.shim_cgroup)
        raise_oom_score()
        if os.environ.get("SCHED_CORE"):
            _create_core_domain()
        args = DaemonArgs(
            namespace=call.namespace,
            id=call.id,
            bundle=bundle,
            address=grpc_address,
            ttrpc_address=params.ttrpc_address or os.environ.get("TTRPC_ADDRESS", ""),
            publish_binary=binary,
            listener_fd=listener,
            socket_address=address,
            log_level=_log_level(params, call.debug),
            options=params.options,
        )
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, HELD_BACK)
        child = os.fork()
        if not child:
            try:
                _daemonize(listener)
            except BaseException as error:
                _report_crash(args, error)
                os._exit(1)
            run_daemon(args)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        files.replace_file(os.path.join(bundle, "shim.pid"), b"%d" % child)
        if version is None:
            version = _learn_version(binary)
        reply(format_reply(params, address, version))
    except BaseException:
        if child:
            os.kill(child, _SIGKILL)
            os.waitpid(child, 0)
            sockets.remove(path + sockets.DEBUG_ENDING)
        sockets.remove(path)
        raise
    finally:
        os.close(listener)
