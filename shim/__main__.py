"""The executable: what containerd calls, and what may be on its output.

containerd reads the stdout and stderr of ``start`` together, to their end, as the reply.  So both
are the null device while an action runs; its reply, or one line about its failure, goes to
descriptors that were kept aside.  An action is imported only when it is called for.
"""

from __future__ import annotations

import gc
import os
import sys

from runtime.base.errors import RuntimeFault
from shim.base import arguments
from shim.forkserver import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

NAME = "containerd-shim-gvisor-v2"


def _take_output() -> tuple[int, int]:
    """Descriptors of the real stdout and stderr, whose places the null device takes."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # one of the three was closed: it becomes the null device right here
        null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(1), os.dup(2)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
    return kept


def _write(fd: int, data: bytes) -> None:
    from runtime.base.files import write_all

    try:
        write_all(fd, data)
    except OSError:
        pass  # no one listens any more


def _one_line(error: BaseException) -> bytes:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, RuntimeFault):
        text = os.strerror(error.errno).lower() if error.errno else text
        text = f"{error.filename}: {text}" if error.filename else text
    elif not isinstance(error, RuntimeFault):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        text = f"{type(error).__name__}: {text} ({place})"
    return f"{NAME}: {' '.join(text.split())}".encode("utf-8", "replace")


def _version() -> bytes:
    from runtime.base.version import VERSION

    python = ".".join(str(n) for n in sys.version_info[:3])
    return f"{NAME}:\n  Version:  {VERSION}\n  Python:   {python}\n".encode()


def _act(call: arguments.Invocation, stdout: int, stderr: int) -> None:
    if call.info:
        from shim import info

        _write(stdout, info.info(0))
    elif call.action == "delete":
        from shim import cleanup

        reply, warnings = cleanup.delete(call)
        _write(stdout, reply)
        for warning in warnings:
            _write(stderr, _one_line(RuntimeFault(warning)) + b"\n")
    else:
        arguments.check_id("-namespace", call.namespace)
        if call.action == "start":
            from shim import bootstrap

            bootstrap.start(call, lambda reply: _write(stdout, reply))
        elif call.action == "take-over":
            from shim import take_over

            take_over.take_over(call, stdout, stderr)
        else:
            from shim import serve

            serve.serve(call, (stdout, stderr))


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; the process's exit status.  Takes over fds 1 and 2."""
    stdout, stderr = _take_output()
    try:
        call = arguments.parse(argv)
        if call.version:
            _write(stdout, _version())
        else:
            _act(call, stdout, stderr)
    except caller.Directly:
        raise
    except Exception as error:
        _write(stderr, _one_line(error))
        return 1
    return 0


def serve_forks() -> NoReturn:
    """Entry point of the fork server, which ``start`` leaves behind."""
    from shim import paths

    paths.complete(*paths.DEPENDENCIES)
    from shim.forkserver import server

    server.run(main)


def run() -> NoReturn:
    """Entry point of the launcher and of ``python -m shim``; spares the interpreter's own exit."""
    # Imports leave next to no garbage: looking for it would take a tenth of their time.  The daemon
    # turns the collector on again; all else ends soon.
    gc.disable()
    status = 1
    try:
        status = main(sys.argv[1:])
    finally:
        os._exit(status)


if __name__ == "__main__":
    run()
