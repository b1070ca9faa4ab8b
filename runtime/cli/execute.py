"""``exec``: another process in a container, attached, with a terminal, or detached."""

from __future__ import annotations

import os
from functools import partial

from runtime.base import files
from runtime.base.errors import InvalidRequest, reason
from runtime.cli import attached, find, stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.state.loaded import StoredContainer


def exec_verb(args: argparse.Namespace) -> int:
    container = find.find(args)
    process = process_of(args, container)
    terminal = process.terminal
    if args.preserve_fds:
        raise InvalidRequest("--preserve-fds", "the sentry takes no more than stdio")
    if args.console_socket and not terminal:
        raise InvalidRequest("--console-socket", "is for a process with a terminal")
    if terminal and args.detach and not args.console_socket:
        raise InvalidRequest("--console-socket", "is wanted for a detached process with a terminal")
    if not args.detach and not args.console_socket:
        run = _run_terminal if terminal else _run_attached
        return run(container, process, args.pid_file)
    if not args.pid_file and not terminal:
        # Nobody waits for it, so its status stays with the sentry for who asks.
        with stdio.Reopened() as fds:
            container.execute(process, fds, False)
        return 0
    from runtime.cli.exec_monitor import leave

    return leave(container, process, args)


def process_of(args: argparse.Namespace, container: StoredContainer) -> ProcessSpec:
    """The process that the command line describes.  Raises InvalidRequest."""
    from runtime.bundle.process_spec import MAX_JSON, parse_process

    if args.process:
        try:
            data = files.read_bounded(args.process, MAX_JSON, follow=True)
        except OSError as error:
            raise InvalidRequest("--process", f"{args.process}: {reason(error)}") from None
        if data is None:
            raise InvalidRequest("--process", f"{args.process}: no such file or directory")
        process = parse_process(data, args.process)
        return process.replace(terminal=process.terminal or args.tty)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise InvalidRequest("exec", "a command is wanted")
    base = container.spec.process
    uid, gid, gids = base.uid, base.gid, base.additional_gids
    if args.user:
        from runtime.cli import users

        account = users.find(args.user, container.rootfs, container.spec)
        uid, gid = account.uid, account.gid
        gids = account.gids if account.gids is not None else gids
    capabilities = base.capabilities
    if args.cap:
        from runtime.bundle.capabilities import Capabilities, mask_of

        more = mask_of(tuple(args.cap), "--cap")
        old = capabilities or Capabilities()
        capabilities = old.replace(
            bounding=old.bounding | more,
            effective=old.effective | more,
            permitted=old.permitted | more,
        )
    return base.replace(
        args=tuple(command),
        env=(*base.env, *(_variable(each) for each in args.env)),
        cwd=args.cwd or base.cwd,
        terminal=args.tty,
        uid=uid,
        gid=gid,
        additional_gids=(*gids, *args.additional_gids),
        capabilities=capabilities,
        no_new_privileges=base.no_new_privileges or args.no_new_privs,
    )


def _variable(text: str) -> str:
    if text.find("=") < 1:
        raise InvalidRequest("--env", f"{text.partition('=')[0]!r} is not of the form NAME=VALUE")
    return text


# -- attached ---------------------------------------------------------------------------------


def _run_attached(container: StoredContainer, process: ProcessSpec, pid_file: str) -> int:
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes
    theirs = (their_in, their_out, their_err)
    try:
        pid = container.execute(process, theirs, False)
    finally:
        stdio.close(theirs)
    os.set_blocking(our_in, False)
    streams = (
        attached.CopiedStream(0, our_in, close_target=True, is_input=True),
        attached.CopiedStream(our_out, 1, close_source=True),
        attached.CopiedStream(our_err, 2, close_source=True),
    )
    stdio.write_pid(pid_file, os.getpid())
    forward = partial(attached.quietly, container.signal_process, pid)
    return attached.run(partial(container.wait_pid, pid), forward, streams)


def _run_terminal(container: StoredContainer, process: ProcessSpec, pid_file: str) -> int:
    attached.require_terminal()
    master, slave = stdio.open_terminal(process)
    attached.copy_size(0, master)
    try:
        pid = container.execute(process, (slave, slave, slave), True)
    finally:
        os.close(slave)

    def forward(number: int) -> None:
        if number == attached._WINCH:
            attached.copy_size(0, master)
        attached.quietly(container.signal_foreground, pid, number)

    def typed(data: bytes) -> None:
        for number in attached.key_signals(master, data):
            attached.quietly(container.signal_foreground, pid, number)

    os.set_blocking(master, False)
    streams = (
        attached.CopiedStream(0, master, seen=typed, is_input=True),
        attached.CopiedStream(master, 1),
    )
    stdio.write_pid(pid_file, os.getpid())
    with attached.RawTerminal(0):
        return attached.run(partial(container.wait_pid, pid), forward, streams)
