"""The OCI runtime verbs that make containers: create, start, run, restore; and checkpoint."""

from __future__ import annotations

import os
from functools import partial

from runtime.base.errors import InvalidRequest, NotFound, RuntimeFault
from runtime.cli import attached, find, settings, stdio
from runtime.task import library

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from runtime.host.pids import Foreign
    from runtime.runsc.release import Generation
    from runtime.state.loaded import StoredContainer
    from runtime.state.shim_record import ContainerRecord
    from runtime.task.library import Request

_SIGWINCH = 28
_FIRST_FD = 3
#: More than any caller has; a sentry takes some for itself, too.
_MAX_PRESERVED = 64


def _request(args: argparse.Namespace, **fields: object) -> Request:
    return library.Request(
        id=args.id,
        bundle=os.path.abspath(args.bundle),
        config=settings.config(args, find.new_root(args)),
        console_socket=args.console_socket,
        pid_file=args.pid_file,
        user_log=os.path.abspath(args.user_log) if args.user_log else "",
        pass_fds=_preserved(args.preserve_fds),
        checkpoint=os.path.abspath(args.image_path) if args.verb == "restore" else "",
        files_checkpoint=_files_image(args),
        **fields,  # type: ignore[arg-type]
    )


def _files_image(args: argparse.Namespace) -> str:
    named = "" if args.verb == "restore" else args.fs_restore_image_path
    return os.path.abspath(named) if named else ""


def _preserved(count: int) -> dict[int, int]:
    """The files that the container gets besides stdio, under the numbers that they have here."""
    if not 0 <= count <= _MAX_PRESERVED:
        raise InvalidRequest("--preserve-fds", f"{count} is not between 0 and {_MAX_PRESERVED}")
    for fd in range(_FIRST_FD, _FIRST_FD + count):
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidRequest("--preserve-fds", f"descriptor {fd} is not open") from None
    return {fd: fd for fd in range(_FIRST_FD, _FIRST_FD + count)}


def create_verb(args: argparse.Namespace) -> None:
    """``create``: stdio is the container's from now on, in descriptions of its own."""
    with stdio.Reopened() as fds:
        library.create(_request(args, stdio=fds))


def start_verb(args: argparse.Namespace) -> None:
    container = find.find(args)
    with stdio.Reopened() as fds:
        library.start(container, settings.config(args, container.root), stdio=fds)


def run_verb(args: argparse.Namespace) -> int:
    if args.detach or args.console_socket:
        with stdio.Reopened() as fds:
            request = _request(args, stdio=fds, attached=not args.detach)
            if args.detach:
                return library.run(request, detach=True)
            return _Run(args, request).run()
    return _run_attached(args)


def restore_verb(args: argparse.Namespace) -> int:
    """``restore``: of a container that is created, too, as runsc has it."""
    try:
        container = find.find(args)
    except NotFound:
        return run_verb(args)
    image = os.path.abspath(args.image_path)
    with stdio.Reopened() as fds:
        config = settings.config(args, container.root)
        library.start(container, config, stdio=fds, checkpoint=image)
    return 0


def _run_attached(args: argparse.Namespace) -> int:
    from runtime.bundle.spec import load_spec

    if load_spec(os.path.abspath(args.bundle)).process.terminal:
        return _run_terminal(args)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes
    theirs = (their_in, their_out, their_err)
    os.set_blocking(our_in, False)
    streams = (
        attached.CopiedStream(0, our_in, close_target=True, is_input=True),
        attached.CopiedStream(our_out, 1, close_source=True),
        attached.CopiedStream(our_err, 2, close_source=True),
    )
    running = _Run(args, _request(args, stdio=theirs, attached=True), theirs)
    return running.run(streams)


def _run_terminal(args: argparse.Namespace) -> int:
    import pty

    attached.require_terminal()
    master, slave = pty.openpty()
    attached.copy_size(0, master)
    os.set_blocking(master, False)
    request = _request(args, stdio=(slave, slave, slave), attached=True)
    running = _Run(args, request, (slave,), master)
    streams = (
        attached.CopiedStream(0, master, seen=running.typed, is_input=True),
        attached.CopiedStream(master, 1),
    )
    with attached.RawTerminal(0):
        return running.run(streams)


class _Run:
    """A container that is run until its end, with our signals passed on to it."""

    def __init__(
        self,
        args: argparse.Namespace,
        request: Request,
        theirs: tuple[int, ...] = (),
        master: int = -1,
    ) -> None:
        self._args, self._request = args, request
        self._theirs = theirs
        self._master = master
        self._container: StoredContainer | None = None
        self._early: list[int] = []

    def run(self, streams: tuple[attached.CopiedStream, ...] = ()) -> int:
        """Init's status, as a shell has it."""
        return attached.run(self._whole, self.forward, streams)

    def _whole(self) -> int:
        try:
            return library.run(self._request, keep=self._args.keep, waiting=self._started)
        finally:
            self._let_go()

    def _started(self, container: StoredContainer) -> Callable[[], None]:
        # So that its end ends the output: the sentry has its own by now.
        self._let_go()
        self._container = container
        early, self._early = self._early, []
        for number in early:
            self.forward(number)
        return lambda: None

    def _let_go(self) -> None:
        theirs, self._theirs = self._theirs, ()
        stdio.close(theirs)

    def forward(self, number: int) -> None:
        container = self._container
        if self._master >= 0 and number == _SIGWINCH:
            attached.copy_size(0, self._master)
            if container is None or container.is_root:
                return  # whose sentry has the terminal, and hears of it from the kernel
        if container is None:
            self._early.append(number)
        elif self._master >= 0:
            attached.quietly(container.signal_foreground, 0, number)
        else:
            attached.quietly(container.signal, number)

    def typed(self, data: bytes) -> None:
        container = self._container
        if container is not None and not container.is_root:
            for number in attached.key_signals(self._master, data):
                attached.quietly(container.signal_foreground, 0, number)


# -- checkpoint ---------------------------------------------------------------------------------


def checkpoint_verb(args: argparse.Namespace) -> None:
    """``checkpoint``: of the whole sandbox, with all its containers."""
    from runtime.state import loaded_checkpoint

    container = find.find(args)
    loaded_checkpoint.save(
        container,
        os.path.abspath(args.image_path),
        generation=_generation(args, container),
        leave_running=args.leave_running,
        compression=args.compression or "",
    )
    if not args.leave_running:
        attached.quietly(partial(container.wait, 20.0))


def fscheckpoint_verb(args: argparse.Namespace) -> None:
    """``fscheckpoint``: of file systems alone."""
    from runtime.sandbox.files import image as files_image
    from runtime.state import loaded_checkpoint

    container = find.find(args)
    loaded_checkpoint.save_files(
        container,
        os.path.abspath(args.image_path),
        [files_image.parse_path(each) for each in args.path or ["/"]],
        generation=_generation(args, container),
        leave_running=args.leave_running,
    )
    if not args.leave_running:
        attached.quietly(partial(container.wait, 20.0))


def _generation(args: argparse.Namespace, container: StoredContainer) -> Generation:
    """Of the binary that the sentry runs, which the image is good for."""
    from runtime.runsc.config import CACHE_DIR, find_binary
    from runtime.runsc.release import probe

    sentry = _program(container.sandbox_process())
    for binary in _runsc_of(sentry, _program(container.gofer_process()), container.record):
        try:
            found = probe(binary, CACHE_DIR)
            if os.path.samefile(found.boot_binary, sentry):
                return found
        except (RuntimeFault, OSError):
            continue  # replaced meanwhile, or no runsc
    return probe(find_binary(settings.config(args, container.root).binary), CACHE_DIR)


def _runsc_of(sentry: str, gofer: str, record: ContainerRecord | None) -> list[str]:
    """Where the runsc of a running sentry may be: itself, its gofers', or beside it."""
    recorded = record.binary if record is not None else ""
    beside = os.path.join(os.path.dirname(os.path.dirname(sentry)), "runsc")
    return [path for path in (sentry, gofer, recorded, beside) if path and sentry]


def _program(process: Foreign | None) -> str:
    """The path of a process's program; empty when it is gone."""
    if process is None:
        return ""
    with process:
        try:
            return os.readlink(f"/proc/{process.pid}/exe")
        except OSError:
            return ""
