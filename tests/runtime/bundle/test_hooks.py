"""What a hook gets, how long it may take, what its failure does, and that poststop comes once."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest
from runtime.base.json_fields import Fields
from runtime.base.version import OCI_VERSION
from runtime.bundle import hooks
from runtime.bundle.hook_spec import POSTSTOP, PRESTART, STAGES, Hook, read_hooks
from runtime.bundle.spec import Spec, parse_spec
from tests.runtime.leaks import nothing_is_left

__all__ = ("nothing_is_left",)

PYTHON = os.path.realpath(sys.executable)


def spec_of(bundle: Path, **stages: list[dict[str, Any]]) -> Spec:
    value = {
        "process": {"args": ["true"]},
        "root": {"path": "rootfs"},
        "annotations": {"org.example": "yes"},
        "hooks": stages,
    }
    return parse_spec(json.dumps(value).encode(), str(bundle))


def program(text: str, **fields: Any) -> dict[str, Any]:
    return {"path": PYTHON, "args": ["hook", "-ISc", text], **fields}


def run(spec: Spec, stage: str = PRESTART, **options: Any) -> None:
    hooks.run(spec, stage, hooks.state_of(spec, "c1", "creating", 77), **options)


# -- reading ----------------------------------------------------------------------------------


def test_hooks_are_read() -> None:
    hook = {"path": "/bin/a", "args": ["a", "b"], "env": ["A=b=c"], "timeout": 7}
    found = read_hooks(Fields({"prestart": [hook], "poststop": [], "unknown": 3}, "x"))
    assert found == {"prestart": (Hook(path="/bin/a", args=("a", "b"), env=("A=b=c",), timeout=7),)}
    assert read_hooks(None) == {}
    assert Hook(path="/bin/a").argv == ("/bin/a",)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ({}, r"\[0\].path: is missing"),
        ({"path": "bin/a"}, "is not absolute"),
        ({"path": 3}, "must be a string"),
        ({"path": "/a\0b"}, "contains a NUL"),
        ({"path": "/a", "args": "x"}, "must be an array"),
        ({"path": "/a", "env": ["SECRET"]}, r"env\[0\]: is not of the form NAME=value"),
        ({"path": "/a", "env": ["=SECRET"]}, "is not of the form"),
        ({"path": "/a", "timeout": 0}, "must be from 1"),
        ({"path": "/a", "timeout": 1.5}, "must be an integer"),
        ({"path": "/a", "args": ["x" * (1 << 20), "y"]}, "is, with the environment, larger"),
        ("x", "must be an object"),
    ],
)
def test_malformed_hooks_are_refused(stage: str, hook: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        read_hooks(Fields({stage: [hook]}, "config.json", "hooks"))
    assert str(caught.value).startswith(f"config.json: hooks.{stage}[0]")
    assert "SECRET" not in str(caught.value)


def test_too_many_hooks() -> None:
    with pytest.raises(InvalidRequest, match="has 257 hooks, more than 256"):
        read_hooks(Fields({"prestart": [{"path": "/a"}] * 257}, "config.json", "hooks"))


# -- what a hook gets -------------------------------------------------------------------------


def test_a_hook_gets_state_arguments_and_its_environment_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = (
        "import json, os, sys\n"
        f"json.dump([json.load(sys.stdin), sys.argv, dict(os.environ), os.getcwd(), os.getsid(0)"
        f" == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:-1]],"
        f" open({str(out)!r}, 'w'))"
    )
    run(spec_of(tmp_path, prestart=[program(text, env=["A=1", "B=x=y"])]))
    state, argv, env, cwd, leads, fds = json.loads(out.read_text())
    assert state == {
        "ociVersion": OCI_VERSION,
        "id": "c1",
        "status": "creating",
        "pid": 77,
        "bundle": str(tmp_path),
        "annotations": {"org.example": "yes"},
    }
    assert argv == ["-c"]
    env.pop("LC_CTYPE", None)  # which the interpreter itself may set
    assert env == {"A": "1", "B": "x=y"}
    assert (cwd, leads) == ("/", True)
    assert fds[:3] == [0, 1, 2] and len(fds) <= 4  # and the folder that is being listed


def test_a_state_without_a_process_has_no_pid(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert "pid" not in json.loads(hooks.state_of(spec, "c1", "stopped").encode())


def test_hooks_run_in_their_order_up_to_the_first_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = [program(f"open({str(out)!r}, 'a').write('{n}')") for n in (1, 2)]
    bad = program("print('no luck'); raise SystemExit(3)")
    with pytest.raises(Failed) as caught:
        run(spec_of(tmp_path, prestart=[*steps, bad, steps[0]]))
    assert out.read_text() == "12"
    assert str(caught.value) == f"prestart hook 2 ({PYTHON}): exit status 3: no luck"


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"prestart hook 0 \(/no/such\): .*no such file or directory"):
        run(spec_of(tmp_path, prestart=[{"path": "/no/such"}]))


def test_a_signal_is_told_and_long_output_is_cut(tmp_path: Path) -> None:
    text = "import os; print('x' * 100000 + 'end', flush=True); os.kill(os.getpid(), 9)"
    with pytest.raises(Failed, match=r"killed by signal 9: \.\.\.x+end$") as caught:
        run(spec_of(tmp_path, prestart=[program(text)]))
    assert len(str(caught.value)) < 700


def test_hooks_that_gvisor_replaces_are_passed_over(tmp_path: Path) -> None:
    run(
        spec_of(
            tmp_path,
            prestart=[{"path": "/no/nvidia-container-runtime-hook"}],
        )
    )
    cdi = {"path": "/no/nvidia-cdi-hook", "args": ["x", "disable-device-node-modification"]}
    run(spec_of(tmp_path, prestart=[cdi]))
    with pytest.raises(Failed):
        run(spec_of(tmp_path, prestart=[{**cdi, "args": ["x", "update-ldcache"]}]))


# -- how long it may take -----------------------------------------------------------------------


def test_a_hook_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = (
        "import os, _signal\n"
        f"os.open({str(fifo)!r}, os.O_WRONLY)\n"
        "print('waiting', flush=True)\n"
        "os.fork()\n"
        "_signal.pause()"
    )
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="waiting: no answer within 1 s"):
        run(spec_of(tmp_path, prestart=[program(text, timeout=1)]))
    assert 0.9 < time.monotonic() - started < 5
    # Only once all that held it are gone is there an end.
    assert select.select([reader], [], [], 5)[0] == [reader]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_deadline_of_the_operation_bounds_hooks_without_a_timeout(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, prestart=[program("import _signal; _signal.pause()")])
    with pytest.raises(DeadlineExceeded):
        run(spec, deadline=time.monotonic() + 0.3)
    hook, own = Hook(path="/a"), Hook(path="/a", timeout=10_000)
    assert hooks.limit(hook, None) == hooks.DEFAULT_TIMEOUT
    assert hooks.limit(hook, time.monotonic() + 1000) == hooks.DEFAULT_TIMEOUT
    assert 4 < hooks.limit(hook, time.monotonic() + 5) <= 5
    assert hooks.limit(own, time.monotonic() + 5) == hooks.MAX_TIMEOUT
    assert hooks.limit(own.replace(timeout=9), time.monotonic() + 5) == 9


def test_a_hook_ends_when_its_creation_is_given_up(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = f"import os, _signal; os.open({str(fifo)!r}, os.O_WRONLY); _signal.pause()"
    given_up = threading.Event()
    faults: list[BaseException] = []

    def create() -> None:
        try:
            run(spec_of(tmp_path, prestart=[program(text)]), given_up=given_up.is_set)
        except Failed as fault:
            faults.append(fault)

    thread = threading.Thread(target=create)
    thread.start()
    reader = os.open(fifo, os.O_RDONLY)  # it runs
    given_up.set()
    thread.join(10)
    assert [str(fault) for fault in faults] == [
        f"prestart hook 0 ({PYTHON}): its container was deleted meanwhile"
    ]
    assert os.read(reader, 1) == b""
    os.close(reader)


# -- those that only warn, and poststop -----------------------------------------------------------


def test_all_hooks_run_where_failures_only_warn(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = program(f"open({str(out)!r}, 'a').write('x')")
    spec = spec_of(tmp_path, poststart=[good, {"path": "/no/such"}, good])
    faults = hooks.run_all(spec, "poststart", hooks.state_of(spec, "c1", "running", 5))
    assert out.read_text() == "xx"
    assert len(faults) == 1 and "/no/such" in faults[0]


def test_poststop_is_run_once_and_only_if_owed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    spec = spec_of(tmp_path, poststop=[program(text)])
    assert hooks.settle_poststop(spec, "c1") == []
    assert not out.exists()
    hooks.owe_poststop(spec)
    threads = [threading.Thread(target=hooks.settle_poststop, args=(spec, "c1")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert json.loads(out.read_text())["status"] == "stopped"
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_owed_without_poststop_hooks(tmp_path: Path) -> None:
    hooks.owe_poststop(spec_of(tmp_path, prestart=[{"path": "/a"}]))
    assert os.listdir(tmp_path) == []
    with pytest.raises(Failed, match="no such file"):
        hooks.owe_poststop(spec_of(tmp_path / "gone", poststop=[{"path": "/a"}]))


def test_the_names_that_cleaning_up_looks_for_agree() -> None:
    from shim import cleanup

    assert cleanup._OWED == hooks.OWED
    assert STAGES[-1] == POSTSTOP
