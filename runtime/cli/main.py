"""``gvctl``: reads the command line, calls the verb, and turns what it raises into an exit status.

Owns what an error looks like: a line on stderr, one in the log that programs read (as runc's),
and the status that runc's callers expect.  Each verb's module is loaded when it is called.
"""

from __future__ import annotations

import os
import sys

from runtime.base.errors import RuntimeFault, reason
from runtime.cli import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from runtime.cli.exporter.collect import PostDebug
    from runtime.state.loaded_limits import AskShim

    #: Asks a shim by its address: a method of its debug socket, the request, and seconds.
    AskDebug = Callable[[str, str, Mapping[str, Any], float], Mapping[str, Any]]

FAILED = 1
#: What a failed exec ends with, as no program's own status.
EXEC_FAILED = 255
INTERRUPTED = 130


class Quit(Exception):
    """End with this status; what there is to say has been said."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def message_of(error: BaseException) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and not isinstance(error, RuntimeFault) and error.errno:
        text = reason(error)
        return f"{error.filename}: {text}" if error.filename else text
    return " ".join(str(error).split())


def main(
    argv: Sequence[str],
    ask_shim: AskShim | None = None,
    ask_debug: AskDebug | None = None,
    post_debug: PostDebug | None = None,
) -> int:
    """Do what the command line says; the exit status.

    ``ask_shim`` is the way to a shim, ``ask_debug`` and ``post_debug`` those to its debug socket.
    """
    parser = arguments.build()
    log = _find_log(argv)
    try:
        args = parser.parse_args(argv)
    except arguments.UsageError as error:
        _say(f"{error}\n{error.usage}")
        log_line(log[0], log[1], "error", str(error))
        return arguments.USAGE_ERROR
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    if args.version or (args.verb is None and not argv):
        sys.stdout.write(_version() if args.version else parser.format_help())
        return 0
    if args.verb is None:
        _say("a command is wanted; see --help")
        return arguments.USAGE_ERROR
    _configure_log(args)
    args.ask_shim, args.ask_debug, args.post_debug = ask_shim, ask_debug, post_debug
    try:
        return _handler(args)(args) or 0
    except Quit as leaving:
        return leaving.status
    except BrokenPipeError:
        # Nobody reads what is printed any more, nor should the interpreter try at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RuntimeFault, OSError) as error:
        text = message_of(error)
        _say(text)
        log_line(args.log, args.log_format, "error", text)
        return EXEC_FAILED if args.verb == "exec" else FAILED
    except Exception as error:
        # A mistake of ours: its place is worth more than a page of its way there.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
        text = f"{type(error).__name__}: {message_of(error)}{where}"
        _say(text)
        log_line(args.log, args.log_format, "error", text)
        return FAILED


def _handler(args: argparse.Namespace) -> Callable[[argparse.Namespace], int | None]:
    from importlib import import_module

    module, _, name = args.call.partition(":")
    found = getattr(import_module(f"runtime.cli.{module}"), name + "_verb")
    handler: Callable[[argparse.Namespace], int | None] = found
    return handler


def _find_log(argv: Sequence[str]) -> tuple[str, str]:
    """Where the caller reads errors, for a command line that can't be parsed."""
    found = {"--log": "", "--log-format": "text"}
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in found and (equals or index + 1 < len(argv)):
            found[name] = value if equals else argv[index + 1]
    return found["--log"], found["--log-format"]


def _say(text: str) -> None:
    from runtime.cli import output

    try:
        sys.stderr.write(f"{arguments.PROGRAM}: {output.plain(text)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # no one listens any more


def log_line(path: str, form: str, level: str, text: str) -> None:
    """Append a line to the log in the form of runc's, which podman and docker read."""
    if not path:
        return
    import time

    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if form == "json":
        from runtime.base import fastjson

        line = fastjson.dumps({"level": level, "msg": text, "time": stamp})
    else:
        from runtime.base import fastjson

        line = f'time="{stamp}" level={level} msg={fastjson.quote(text)}'
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        _say(f"log {path}: {reason(error)}")


def _configure_log(args: argparse.Namespace) -> None:
    """Have the library's own lines written: with --debug all, else warnings."""
    from runtime.base import log

    level = log.DEBUG if args.debug else log.WARNING
    if not args.log:
        if args.debug:
            log.configure(os.dup(2), level)
        return
    if args.log_format == "json":
        # The library writes logfmt; programs that read JSON want the errors, which log_line writes.
        return
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        log.configure(os.open(args.log, flags | os.O_NONBLOCK, 0o644), level)
    except OSError:
        return  # said when there is an error to be logged


def _version() -> str:
    from runtime.base.version import OCI_VERSION, VERSION

    python = ".".join(str(n) for n in sys.version_info[:3])
    return f"{arguments.PROGRAM} version {VERSION}\nspec: {OCI_VERSION}\npython: {python}\n"


def run(
    ask_shim: AskShim | None = None,
    ask_debug: AskDebug | None = None,
    post_debug: PostDebug | None = None,
) -> NoReturn:
    """Do what the process's command line says, and end it; arguments as for :func:`main`."""
    _fill_stdio()
    status = main(sys.argv[1:], ask_shim, ask_debug, post_debug)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = status or FAILED
    # Spares the interpreter's own end; threads that still copy a terminal die with us.
    os._exit(status)


def _fill_stdio() -> None:
    """Open /dev/null for what the caller has closed of our stdio.

    Else the next files that are opened would be it, and the container's, and there would be
    no ``sys.stdout`` to print to.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which this is, since those below it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


if __name__ == "__main__":
    run()
