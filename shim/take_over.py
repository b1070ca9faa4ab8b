"""``take-over``: goes on in the process in which another version of the shim has run until now.

Also says, in a process of its own, whether that would go well.
"""

from __future__ import annotations

import os
import time

from runtime.base import fastjson
from runtime.base.errors import InvalidRequest, RuntimeFault
from runtime.base.version import VERSION
from shim.handover import program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from shim.base.arguments import Invocation

#: In the environment, why the version that was to take over gave the process back.
_GIVEN_BACK = "GVISOR_SHIM_GIVEN_BACK"


def take_over(call: Invocation, stdout: int, stderr: int) -> None:
    """Check what descriptor ``call.state`` has, and say so, or go on from there until the end."""
    try:
        state = int(call.state)
    except ValueError:
        raise InvalidRequest("-state", f"{call.state!r} is no descriptor") from None
    from shim import paths

    paths.complete(*paths.DEPENDENCIES)
    if call.check:
        _check(state, stdout)
    else:
        os.close(stdout)
        os.close(stderr)
        _go_on(state)


def _check(state: int, stdout: int) -> None:
    from runtime.base.files import write_all
    from shim.handover.unpack import unpack

    refused = ""
    try:
        # All that going on needs.
        from shim import daemon

        found = unpack(program.read(state), dry=True)
        if not isinstance(found.root, daemon.Daemon):
            refused = "what was handed over is no shim"
    except (RuntimeFault, ImportError, RecursionError, MemoryError) as fault:
        refused = str(fault) or type(fault).__name__
    write_all(stdout, fastjson.dumps({"refused": refused, "version": VERSION}).encode())


def _go_on(state: int) -> NoReturn:
    import gc

    gc.disable()
    given_back = os.environ.pop(_GIVEN_BACK, "")
    status = 1
    try:
        try:
            from shim import daemon
            from shim.handover.unpack import unpack

            began = os.fstat(state).st_mtime
            daemon.prepare()
            program.keep_to_ourselves()
            found = unpack(program.read(state))
            shim = found.root
            assert isinstance(shim, daemon.Daemon)
            found.put_into_place()
            daemon.show_launcher()
            _name_process()
        except Exception as error:
            _give_back(state, f"{type(error).__name__}: {error}", given_back)
            raise
        os.close(state)
        before = found.version

        def told() -> None:
            if given_back:
                shim.upgrade.failed("", given_back, began)
            else:
                shim.upgrade.taken_over(before, began)

        status = shim.resume(told)
    except BaseException as error:
        _report(error)
    finally:
        os._exit(status)


def _name_process() -> None:
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(b"containerd-shim")
    except OSError:
        pass  # ps calls it by the interpreter's name


def _give_back(state: int, why: str, given_back: str) -> None:
    """Have the version that handed over go on, which is there still: no thread has run yet."""
    if given_back:
        return
    try:
        graph = fastjson.loads(program.read(state))
        earlier, arguments = graph["program"], graph["arguments"]
        if not earlier:
            return
        os.environ[_GIVEN_BACK] = why[:1000]
        program.execute(earlier, arguments, state)
    except Exception as error:
        _report(error)


def _report(error: BaseException) -> None:
    """To the log in the bundle, which is the working directory, as far as that is possible."""
    text = fastjson.quote(f"{type(error).__name__}: {error}"[:1000])
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{now}" level=error msg="upgrade.crashed" error={text}\n'
    try:
        fd = os.open("log", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        os.write(fd, line.encode("utf-8", "replace"))
    except OSError:
        pass
    finally:
        os.close(fd)
