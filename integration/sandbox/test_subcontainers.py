"""Several containers in one sandbox."""

from __future__ import annotations

import os
import pty
import signal
import time
from typing import Any

import pytest

from integration.sandbox.lab import PROC, TIMEOUT, Exit, Lab, Run, make_rootfs, until
from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)
from runtime.sandbox.sandbox import ExitInfo, SignalMode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")


def _add(lab: Lab, run: Run, name: str, args: list[str], **options: Any) -> Exit:
    """Create and start a container in a sandbox."""
    null, before = os.open(os.devnull, os.O_RDWR), options.pop("before", None)
    try:
        run.sandbox.create_subcontainer(
            lab.params(name, args, options.pop("stdio", (null,) * 3), **options)
        )
    finally:
        os.close(null)
    ended = Exit()
    run.sandbox.start_subcontainer(name, time.monotonic() + TIMEOUT, before)
    run.sandbox.wait_container(name, ended)
    return ended


def _other_root(lab: Lab, name: str = "rootfs2") -> dict[str, Any]:
    return {"path": str(make_rootfs(lab.folder / name))}


def test_subcontainer(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    data = lab.folder / "data"
    data.mkdir()
    bind = {"destination": "/mnt", "type": "bind", "source": str(data), "options": ["rbind"]}
    reader, writer = os.pipe()
    try:
        ended = _add(
            lab,
            run,
            "two",
            ["sh", "-c", "echo x > /mnt/mark; echo started; sleep 100; true"],
            root=_other_root(lab),
            mounts=[PROC, bind],
            stdio=(writer,) * 3,
        )
        assert os.read(reader, 100) == b"started\n"
        assert run.execute("cat", "/mnt/mark", cid="two")[0] == "x\n"
        assert (data / "mark").read_text() == "x\n"
        assert len(run.sandbox.processes("two")) == 2
        assert set(run.sandbox.event("two").cpu_ns) == {"one", "two"}
        run.sandbox.signal("two", signal.SIGKILL, mode=SignalMode.ALL)
        assert ended.get() == ExitInfo(status=137, raw=9)
        run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
        os.close(writer)
        writer = -1
        assert os.read(reader, 100) == b"", "a descriptor of the container's stdout is left"
        with pytest.raises(NotFound):
            run.execute("true", cid="two")
        run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
        assert run.execute("true")[1].status == 0
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_subcontainer_exit_code_and_reuse_of_its_id(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    root = _other_root(lab)
    for code in (0, 7):
        ended = _add(lab, run, "two", ["sh", "-c", f"exit {code}"], root=root)
        assert ended.get() == ExitInfo(status=code, raw=code << 8)
        run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)


def test_subcontainer_that_is_never_started(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    null = os.open(os.devnull, os.O_RDWR)
    params = lab.params("two", ["true"], (null,) * 3, root=_other_root(lab))
    run.sandbox.create_subcontainer(params)
    with pytest.raises(AlreadyExists):
        run.sandbox.create_subcontainer(params)
    os.close(null)
    run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)


def test_subcontainers_end_with_the_root(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    ended = _add(lab, run, "two", ["sleep", "100"], root=_other_root(lab))
    run.sandbox.signal("one", signal.SIGKILL)
    assert ended.get().status == 137
    assert run.exit.get() == ExitInfo(status=137, raw=9)


def test_subcontainer_with_a_terminal(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    master, slave = pty.openpty()
    try:
        ended = _add(
            lab,
            run,
            "two",
            ["sh", "-c", "echo up; sleep 100"],
            root=_other_root(lab),
            stdio=(slave,) * 3,
            tty=True,
        )
        until(master, b"up")
        run.sandbox.signal("two", signal.SIGINT, mode=SignalMode.FOREGROUND)
        assert ended.get().status == 130
    finally:
        os.close(master)
        os.close(slave)


def test_subcontainer_failures(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    root = _other_root(lab)
    with pytest.raises(InvalidRequest, match='exec: "nosuch"'):
        _add(lab, run, "two", ["nosuch"], root=root)
    run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
    bind = {"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["rbind"]}
    with pytest.raises(Failed, match=r"/no/such.*no such file"):
        _add(lab, run, "three", ["true"], root=root, mounts=[PROC, bind])
    run.sandbox.destroy_subcontainer("three", time.monotonic() + TIMEOUT)
    assert run.execute("true")[1].status == 0


def test_more_mounts_than_a_call_can_carry(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    mounts = []
    for number in range(130):
        data = lab.folder / "many" / str(number)
        data.mkdir(parents=True)
        mounts.append(
            {"destination": f"/m{number}", "type": "bind", "source": str(data), "options": ["bind"]}
        )
    root = _other_root(lab)
    with pytest.raises(ResourceExhausted, match=r"13[45] file descriptors"):
        _add(lab, run, "two", ["true"], root=root, mounts=mounts)
    run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
    ended = _add(lab, run, "three", ["true"], root=root, mounts=mounts[:120])
    assert ended.get().status == 0
    lab.finish(run)
    # A root container's are inherited, not sent.
    assert lab.outcome(["true"], mounts=mounts)[1].status == 0


def test_shared_tmpfs_of_a_pod(lab: Lab) -> None:
    if lab.old:
        pytest.skip("has no filestores for it")
    volume = lab.folder / "volume"
    volume.mkdir()
    prefix = "dev.gvisor.spec.mount.vol."
    annotations = {
        prefix + "source": str(volume),
        prefix + "type": "tmpfs",
        prefix + "share": "pod",
    }
    bind = {"destination": "/mnt", "type": "bind", "source": str(volume), "options": ["rbind"]}
    run = lab.run(["sleep", "100"], annotations=annotations, mounts=[PROC, bind])
    ended = _add(
        lab,
        run,
        "two",
        ["sh", "-c", "echo shared > /mnt/mark"],
        root=_other_root(lab),
        mounts=[PROC, bind],
    )
    assert ended.get().status == 0
    run.sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
    assert run.execute("cat", "/mnt/mark")[0] == "shared\n"
    assert [path.name for path in volume.iterdir()] == [".gvisor.filestore.one"]


def test_an_init_that_is_held_back(lab: Lab) -> None:
    """Others run in the container before init does, and siblings go on."""
    run = lab.run(["sleep", "100"])
    reader, writer = os.pipe()

    def before() -> None:
        assert run.execute("true")[1].status == 0
        assert run.execute("sh", "-c", "echo first >/tmp/mark", cid="two")[1].status == 0
        assert [p.command for p in run.sandbox.processes("two")] == ["cat"]

    stdio = {"stdio": (writer,) * 3, "root": _other_root(lab)}
    assert _add(lab, run, "two", ["cat", "/tmp/mark"], before=before, **stdio).get().status == 0
    assert os.read(reader, 100) == b"first\n"

    def fail() -> None:
        raise Failed("no luck")

    with pytest.raises(Failed, match="no luck"):
        _add(
            lab,
            run,
            "three",
            ["sh", "-c", "echo ran"],
            before=fail,
            **{**stdio, "root": _other_root(lab, "rootfs3")},
        )
    run.sandbox.signal("three", signal.SIGKILL, mode=SignalMode.ALL)
    run.sandbox.destroy_subcontainer("three", time.monotonic() + TIMEOUT)
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)
