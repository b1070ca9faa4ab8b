from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed
from runtime.bundle.spec import Mount, Spec, parse_spec
from runtime.host import forward_program
from runtime.host.fds import FdSet
from runtime.runsc.config import RunscConfig
from runtime.runsc.flags import read_settings
from runtime.sandbox.gofer_mounts import (
    MountPlan,
    is_gofer_mount,
    plan_mounts,
    remove_filestores,
    require_sources,
)
from tests.fakes.generations import GENERATIONS

IN_POD = {"io.kubernetes.cri.container-type": "sandbox"}


@pytest.fixture
def fds() -> Iterator[FdSet]:
    with FdSet() as fds:
        yield fds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "store").mkdir()
    return tmp_path


def make_spec(folder: Path, readonly: bool = False, annotations: Any = None) -> Spec:
    def bind(name: str, *options: str) -> dict[str, Any]:
        return {
            "destination": f"/{name}",
            "type": "bind",
            "source": str(folder / name),
            "options": ["rbind", *options],
        }

    value = {
        "process": {"args": ["x"]},
        "root": {"path": str(folder / "root"), "readonly": readonly},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            bind("data"),
            bind("file"),
            {**bind("data", "ro"), "destination": "/ro"},
        ],
        "annotations": {**(IN_POD if annotations is None else annotations)},
    }
    return parse_spec(json.dumps(value).encode(), "/b")


def plan(spec: Spec, fds: FdSet, overlay: str = "", year: int = 2024) -> MountPlan:
    flags = {"overlay2": overlay} if overlay else {}
    generation = GENERATIONS[year]
    settings = read_settings(RunscConfig(root="/r", flags=flags), generation, spec)
    return plan_mounts(spec, settings, generation, "s", spec.annotations, fds)


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (Mount(destination="/", type="bind", source="/x"), True),
        (Mount(destination="/", type="none", source="/x", options=("rbind",)), True),
        (Mount(destination="/", type="tmpfs", source="tmpfs"), False),
        (Mount(destination="/", type="bind"), False),
    ],
)
def test_gofer_mounts(mount: Mount, expected: bool) -> None:
    assert is_gofer_mount(mount) is expected


def test_each_overlay_has_the_size(folder: Path, fds: FdSet) -> None:
    found = plan(make_spec(folder), fds, "all:memory,size=2g", 2026)
    bounded = "lisafs:memory:size=2g"
    assert [str(conf) for conf in found.confs] == [bounded, bounded, bounded, "lisafs:none"]
    assert found.confs[0].to_json() == {"lower": 1, "upper": 1, "size": "2g"}
    hint = "dev.gvisor.spec.mount.data."
    volume = {hint + "source": str(folder / "data"), hint + "type": "tmpfs", hint + "share": "pod"}
    found = plan(make_spec(folder, annotations=volume), fds, "root:memory,size=2g", 2026)
    assert [str(conf) for conf in found.confs][:2] == [bounded, "none:self"]
    remove_filestores(found.shared_filestores)


@pytest.mark.parametrize(
    ("overlay", "confs", "files"),
    [
        ("none", "lisafs:none lisafs:none lisafs:none lisafs:none", []),
        ("", "lisafs:self lisafs:none lisafs:none lisafs:none", ["root"]),
        ("root:memory", "lisafs:memory lisafs:none lisafs:none lisafs:none", []),
        ("all:self", "lisafs:self lisafs:self lisafs:memory lisafs:none", ["root", "data"]),
    ],
)
def test_overlays(folder: Path, fds: FdSet, overlay: str, confs: str, files: list[str]) -> None:
    found = plan(make_spec(folder), fds, overlay)
    assert [str(conf) for conf in found.confs] == confs.split()
    assert found.sockets == 4
    wanted = [str(folder / name / ".gvisor.filestore.s") for name in files]
    assert list(found.filestores) == wanted
    assert len(found.filestore_fds) == len(wanted)
    assert all(os.path.exists(path) for path in wanted)
    remove_filestores(found.filestores)
    remove_filestores(found.filestores)
    assert not any(os.path.exists(path) for path in wanted)


def test_a_root_that_images_are_made_of_holds_no_filestore(folder: Path, fds: FdSet) -> None:
    found = plan(make_spec(folder, annotations={}), fds, "all:self")
    assert str(found.confs[0]) == "lisafs:anon"
    assert list((folder / "root").iterdir()) == []
    assert found.filestores == (str(folder / "data" / ".gvisor.filestore.s"),)
    os.write(found.filestore_fds[0], b"x")
    remove_filestores(found.filestores)


def test_overlay_in_a_directory(folder: Path, fds: FdSet) -> None:
    for year, value in ((2024, f"all:dir={folder}/store"), (2022, f"root:{folder}/store")):
        found = plan(make_spec(folder), fds, value, year)
        assert found.filestores == ()
        assert len(found.filestore_fds) == (3 if year == 2024 else 1)
        assert not list((folder / "store").iterdir())
        for fd in found.filestore_fds:
            os.write(fd, b"x")
    with pytest.raises(Failed, match=r"create overlay filestore in /no/such: no such file"):
        plan(make_spec(folder), fds, "root:dir=/no/such")


def test_read_only_root_has_no_overlay(folder: Path, fds: FdSet) -> None:
    assert str(plan(make_spec(folder, readonly=True), fds).confs[0]) == "lisafs:none"


def test_filestore_that_exists_is_not_taken_over(folder: Path, fds: FdSet) -> None:
    existing = folder / "data" / ".gvisor.filestore.s"
    existing.write_text("precious")
    with pytest.raises(Failed, match=r"create overlay filestore .*/data/.*: file exists"):
        plan(make_spec(folder), fds, "all:self")
    assert not (folder / "root" / ".gvisor.filestore.s").exists(), "left by the failure"
    assert existing.read_text() == "precious"
    existing.unlink()
    existing.symlink_to(folder / "victim")
    with pytest.raises(Failed):
        plan(make_spec(folder), fds, "all:self")
    assert not (folder / "victim").exists()


def hints(folder: Path, kind: str, share: str) -> dict[str, str]:
    prefix = "dev.gvisor.spec.mount.v."
    return {
        prefix + "source": str(folder / "data"),
        prefix + "type": kind,
        prefix + "share": share,
        "dev.gvisor.spec.mount.w.source": "/incomplete",
    }


def test_shared_volumes(folder: Path, fds: FdSet) -> None:
    spec = make_spec(folder, annotations=hints(folder, "tmpfs", "pod"))
    found = plan(spec, fds, "none")
    assert [str(conf) for conf in found.confs] == [
        "lisafs:none",
        "none:self",
        "lisafs:none",
        "none:self",
    ]
    assert found.sockets == 2
    path = str(folder / "data" / ".gvisor.filestore.s")
    assert set(found.shared_filestores) == {path}
    assert found.filestores == ()
    plan(spec, fds, "none")
    remove_filestores(found.shared_filestores)
    alone = make_spec(folder, annotations=hints(folder, "bind", "container"))
    with pytest.raises(Failed, match="file exists"):
        plan(alone, fds, "none")  # the same source twice, and not shareable
    assert not os.path.exists(path)


def test_old_releases_leave_overlays_to_the_sentry(folder: Path, fds: FdSet) -> None:
    found = plan(make_spec(folder), fds, "root:memory", 2022)
    assert found.sockets == 4
    assert found.filestore_fds == ()


def test_remove_names_what_it_can_not(folder: Path) -> None:
    (folder / "dir").mkdir()
    with pytest.raises(Failed, match=r"remove .*/dir: "):
        remove_filestores([str(folder / "dir"), str(folder / "file")])
    assert not (folder / "file").exists()


def test_missing_source_is_named(folder: Path, fds: FdSet) -> None:
    spec = make_spec(folder)
    confs = plan(spec, fds).confs
    require_sources(spec, confs)
    (folder / "file").unlink()
    with pytest.raises(Failed, match=r"^mount .*/file on /file: no such file or directory$"):
        require_sources(spec, confs)


def test_a_read_only_file_system_is_overlaid_in_memory(
    folder: Path, fds: FdSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr("runtime.sandbox.gofer_mounts._open_filestore", refuse)
    made = plan(make_spec(folder), fds, "all:self")
    assert str(made.confs[0]) == "lisafs:memory"
    assert (made.filestore_fds, made.filestores) == ((), ())


@pytest.mark.parametrize("year", [2022, 2024, 2026])
def test_a_root_that_the_sentry_mounts(
    folder: Path, fds: FdSet, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """The shim's own for pods, if nothing else takes a gofer and no user namespace needs it."""
    monkeypatch.setattr(forward_program, "FOLDERS", (str(folder / "root"),))
    value: dict[str, Any] = {
        "process": {"args": ["x"]},
        "root": {"path": str(folder / "root"), "readonly": True},
        "annotations": IN_POD,
    }

    def made(**changes: Any) -> MountPlan:
        return plan(parse_spec(json.dumps({**value, **changes}).encode(), "/b"), fds, year=year)

    assert made().sockets == 1  # there is no image
    (folder / "root.erofs").write_bytes(b"")
    if year == 2022:
        assert not made().serves_itself and made().sockets == 1
        return
    assert made().serves_itself and not made().sockets
    assert [str(conf) for conf in made().confs] == ["erofs:none"]
    data = {"destination": "/data", "type": "bind", "source": str(folder / "data")}
    assert made(mounts=[data]).sockets == 2
    assert made(linux={"namespaces": [{"type": "user"}]}).sockets == 1
    assert made(root={"path": str(folder / "root")}).sockets == 1
    monkeypatch.setattr(forward_program, "FOLDERS", ("/elsewhere",))
    assert made().sockets == 1
