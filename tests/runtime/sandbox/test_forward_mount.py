"""Which containers get the program for port forwarding."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.base.errors import Unsupported
from runtime.bundle.spec import Spec, read_spec
from runtime.host import forward_program
from runtime.sandbox import forward_mount


def _spec(kind: str = "sandbox", netns: str = "/run/netns/x") -> Spec:
    raw: dict[str, Any] = {
        "process": {"args": ["/pause"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
        "annotations": {"io.kubernetes.cri.container-type": kind} if kind else {},
        "linux": {"namespaces": [{"type": "network", "path": netns}]},
    }
    return read_spec(raw, "/bundle")


def _image(*mounts: str) -> Any:
    return SimpleNamespace(about=SimpleNamespace(containers=[SimpleNamespace(mounts=mounts)]))


def test_a_pods_first_container_gets_it(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        spec, added = forward_mount.add(_spec(), None, (f"{tmp_path}/inside",))
    finally:
        os.umask(old)
    assert added == "/dev/.gvisor-shim/forward"
    mount = spec.mounts[-1]
    assert (mount.destination, mount.source) == ("/dev/.gvisor-shim", f"{tmp_path}/inside")
    assert mount.read_only and spec.raw["mounts"][0]["destination"] == "/dev"
    program = tmp_path / "inside" / "forward"
    assert program.stat().st_mode & 0o777 == 0o755
    assert program.read_bytes() == forward_program.program()
    # One that is broken is replaced, one that is whole is left.
    program.write_bytes(b"x")
    forward_mount.add(_spec(), None, (f"{tmp_path}/inside",))
    inode = program.stat().st_ino
    assert program.read_bytes() == forward_program.program()
    forward_mount.add(_spec(), None, (f"{tmp_path}/inside",))
    assert program.stat().st_ino == inode


@pytest.mark.parametrize(("kind", "netns"), [("container", "/x"), ("", "/x"), ("sandbox", "")])
def test_others_do_not(tmp_path: Path, kind: str, netns: str) -> None:
    spec = _spec(kind, netns)
    assert forward_mount.add(spec, None, (f"{tmp_path}/inside",)) == (spec, "")
    assert not list(tmp_path.iterdir())


def test_what_is_restored_has_the_mounts_that_it_had(tmp_path: Path) -> None:
    spec = _spec()
    assert forward_mount.add(spec, _image("/x"), (f"{tmp_path}/inside",)) == (spec, "")
    nothing: Any = SimpleNamespace(about=None)
    assert forward_mount.add(spec, nothing, (f"{tmp_path}/inside",)) == (spec, "")
    assert forward_mount.add(spec, _image("/dev/.gvisor-shim"), (f"{tmp_path}/inside",))[1]


def test_a_place_where_nothing_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is taken; without any the pod is made without."""
    first, second = str(tmp_path / "one"), str(tmp_path / "two")
    real = os.statvfs

    def statvfs(path: str) -> Any:
        flags = os.ST_NOEXEC if path == first else real(path).f_flag
        return SimpleNamespace(f_flag=flags)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert forward_program.install((first, second)) == second
    with pytest.raises(Unsupported, match=f"{first}, as they are mounted noexec"):
        forward_program.install((first,))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    spec = _spec()
    assert forward_mount.add(spec, None, (f"{tmp_path}/inside",)) == (spec, "")
    (tmp_path / "file").touch()
    assert forward_mount.add(spec, None, (f"{tmp_path}/file/inside",)) == (spec, "")
