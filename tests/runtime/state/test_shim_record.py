import json
import os
import stat
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.host import pids
from runtime.state import shim_record
from runtime.state.lock import StateLock
from runtime.state.shim_record import ContainerRecord, Pinned


def make(
    tmp_path: Path, name: str = "c1", sandbox: str = "c1", **fields: object
) -> ContainerRecord:
    bundle = tmp_path / "bundles" / name
    bundle.mkdir(parents=True, exist_ok=True)
    values = {"id": name, "sandbox_id": sandbox, "is_root": name == sandbox, "bundle": str(bundle)}
    return ContainerRecord(**{**values, **fields})  # type: ignore[arg-type]


FULL: dict[str, object] = {
    "namespace": "k8s.io",
    "rootfs": "/b/rootfs",
    "boot": Pinned(pid=5, start_time=6),
    "gofers": (Pinned(pid=7, start_time=8), Pinned(pid=9, start_time=10)),
    "cgroups": ({"own": {"memory": ["/a"]}},),
    "control_socket": "/run/x.sock",
    "filestores": ("/f/.gvisor.filestore.c1",),
    "shim_address": "unix:///run/s",
    "pid": 3,
    "exit_status": 0,
    "exited_at": 1.5,
}


def test_round_trip(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    record = make(tmp_path, shim_pid=os.getpid(), **FULL)
    shim_record.save(root, record)
    loaded = shim_record.load(root, "c1")
    assert loaded is not None
    assert loaded.shim_start_time == pids.start_time(os.getpid())
    assert loaded.boot_id == shim_record.boot_id() != ""
    assert loaded.replace(shim_start_time=0, boot_id="") == record
    (name,) = os.listdir(root)
    assert name == "c1_sandbox:c1.shim.json"
    assert stat.S_IMODE(os.stat(f"{root}/{name}").st_mode) == 0o600
    assert shim_record.locate(record.bundle) == root


def test_defaults_round_trip(tmp_path: Path) -> None:
    record = make(tmp_path)
    shim_record.save(str(tmp_path), record)
    loaded = shim_record.load(str(tmp_path), "c1")
    assert loaded is not None and loaded.replace(boot_id="") == record


def test_members(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for name, sandbox in (("a1", "c1"), ("c1", "c1"), ("c2", "c2"), ("c1.x", "c2")):
        shim_record.save(root, make(tmp_path, name, sandbox))
    assert [r.id for r in shim_record.load_sandbox(root, "c1")] == ["c1", "a1"]
    assert [r.id for r in shim_record.load_sandbox(root, "c2")] == ["c2", "c1.x"]
    found = shim_record.load(root, "a1")
    assert found is not None and found.sandbox_id == "c1"
    shim_record.remove(root, "c1")
    assert shim_record.load(root, "c1") is None
    records, faults = shim_record.list_all(root)
    assert ([r.id for r in records], faults) == (["a1", "c1.x", "c2"], [])
    shim_record.remove(root, "c1")


def test_nothing_there(tmp_path: Path) -> None:
    root = str(tmp_path / "none")
    assert shim_record.load(root, "c1") is None
    assert shim_record.load_sandbox(root, "c1") == []
    assert shim_record.list_all(root) == ([], [])
    shim_record.remove(root, "c1")
    assert not os.path.exists(root)
    assert shim_record.locate(root) is None


def mutated(**changes: object) -> bytes:
    body = {"schema": 1, "id": "c1", "sandbox_id": "c1", "is_root": True, "bundle": "/b"}
    return json.dumps({**body, **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        mutated(schema=2),
        mutated(id="other"),
        mutated(id=None),
        mutated(is_root=1),
        mutated(boot=[1]),
        mutated(boot=[True, 2]),
        mutated(gofers=[[1, "2"]]),
        mutated(gofers={}),
        mutated(cgroups=["x"]),
        mutated(filestores=[1]),
        mutated(pid="1"),
        mutated(exit_status=1.5),
        mutated(exited_at="now"),
        json.dumps({"schema": 1, "id": "c1", "sandbox_id": "c1"}).encode(),
        b'{"x":"' + b"y" * (1 << 20) + b'"}',
    ],
)
def test_corrupt_record_is_named_and_harms_no_other(tmp_path: Path, data: bytes) -> None:
    root = str(tmp_path / "root")
    shim_record.save(root, make(tmp_path, "a1", "c1"))
    path = Path(root) / "c1_sandbox:c1.shim.json"
    path.write_bytes(data)
    with pytest.raises(Failed, match=r"state file .*c1_sandbox:c1"):
        shim_record.load(root, "c1")
    assert [r.id for r in shim_record.load_sandbox(root, "c1")] == ["a1"]
    records, faults = shim_record.list_all(root)
    assert len(records) == len(faults) == 1
    shim_record.remove(root, "c1")
    assert not path.exists()


def test_members_of_a_later_release_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "c1_sandbox:c1.shim.json").write_bytes(mutated(news=[1]))
    assert shim_record.load(str(tmp_path), "c1") is not None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(mutated())
    (tmp_path / "c1_sandbox:c1.shim.json").symlink_to("real")
    with pytest.raises(Failed):
        shim_record.load(str(tmp_path), "c1")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", ".hidden", "a\0", "x" * 300])
def test_ids_that_cannot_name_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        shim_record.load(str(tmp_path), name)


@pytest.mark.parametrize("data", ["", "{}", "[]", '{"root":"relative"}', '{"root":1}', "{"])
def test_bad_locator_is_none(tmp_path: Path, data: str) -> None:
    (tmp_path / shim_record.LOCATOR).write_text(data)
    assert shim_record.locate(str(tmp_path)) is None


def test_runscs_files_are_no_records_and_go_with_the_container(tmp_path: Path) -> None:
    other = ".c1_sandbox:c1.shim.json.7", "c2_sandbox:c1.state", "c1.state"
    for name in ("c1_sandbox:c1.state", "c1_sandbox:c1.lock", *other):
        (tmp_path / name).touch()
    assert shim_record.list_all(str(tmp_path)) == ([], [])
    shim_record.remove(str(tmp_path), "c1")
    assert sorted(os.listdir(tmp_path)) == sorted(other)


def test_an_id_that_was_only_reserved_leaves_nothing(tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path), "c1", "c1").acquire_for_new()
    shim_record.remove(str(tmp_path), "c1", lock)
    assert list(tmp_path.iterdir()) == []
    lock.release()
