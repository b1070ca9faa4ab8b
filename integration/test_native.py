"""Process start and mounts on a real kernel, as root: namespaces, id maps, cgroups, file systems.

Wants no container engine.  Leaves nothing behind: every test removes its own mounts and cgroups.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.bundle.mount_options import RootfsMount
from runtime.bundle.rootfs import mount_rootfs, mounts_below, unmount_all
from runtime.host import linux
from runtime.host import spawn as spawning
from runtime.host.fds import FdSet
from runtime.host.pids import Foreign, start_time
from runtime.host.spawn import Birth, Child, owns, spawn
from runtime.host.spawn_spec import IdMap, SpawnSpec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")

ALL_NEW = (
    linux.CLONE_NEWIPC
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWUTS
)
IDENTITY = (IdMap(container_id=0, host_id=0, size=4294967295),)
NOBODY = (IdMap(container_id=65534, host_id=65534, size=1),)
CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_SETPCAP = 18, 21, 8


def script(text: str, **fields: object) -> str:
    """What a shell script prints, started with the given fields of a SpawnSpec."""
    with FdSet() as fds:
        reader, writer = fds.pipe()
        spec = SpawnSpec(
            path="/bin/sh",
            argv=("sh", "-c", text),
            fds={1: writer, 2: 2},
            **fields,  # type: ignore[arg-type]
        )
        with spawn(spec) as child:
            fds.close_one(writer)
            output = b""
            while chunk := os.read(reader, 65536):
                output += chunk
            assert child.wait(10) == 0
    return output.decode()


def namespaces(pid: int | str = "self") -> dict[str, str]:
    root = f"/proc/{pid}/ns"
    return {name: os.readlink(f"{root}/{name}") for name in os.listdir(root)}


GROUPS = "grep ^Groups: /proc/self/status"


@pytest.mark.parametrize("namespace", ["", "identity", "nobody", "joined"])
def test_supplementary_groups_are_dropped(namespace: str) -> None:
    """In a user namespace, too, where they would be the host's under another name."""
    wanted: dict[str, object] = {}
    other = None
    if namespace in ("identity", "nobody"):
        maps = IDENTITY if namespace == "identity" else NOBODY
        wanted = {"namespaces": linux.CLONE_NEWUSER, "uid_maps": maps, "gid_maps": maps}
    if namespace == "joined":
        other = asleep(namespaces=linux.CLONE_NEWUSER, uid_maps=IDENTITY, gid_maps=IDENTITY)
        wanted = {
            "join": ((os.open(f"/proc/{other.pid}/ns/user", os.O_RDONLY), linux.CLONE_NEWUSER),)
        }
    before = os.getgroups()
    os.setgroups([0, 6, 42])
    try:
        assert script(GROUPS, drop_groups=True, **wanted).split() == ["Groups:"]
        assert len(script(GROUPS, **wanted).split()) == 4
    finally:
        os.setgroups(before)
        if other is not None:
            os.close(wanted["join"][0][0])  # type: ignore[index]
            finish(other)


def test_nobody_looks_into_a_process_that_enters_a_user_namespace() -> None:
    """Until it executes it is a copy of ours; who rules that namespace must not read it."""
    maps = (IdMap(container_id=0, host_id=100_000, size=1000),)
    owner = asleep(namespaces=linux.CLONE_NEWUSER, uid_maps=maps, gid_maps=maps)
    space = os.open(f"/proc/{owner.pid}/ns/user", os.O_RDONLY)
    join = ((space, linux.CLONE_NEWUSER),)
    seen = []

    def look(pid: int) -> None:
        seen.append(script(f"readlink /proc/{pid}/exe || echo no", join=join, uid=0, gid=0))

    class Seen(Birth):
        def _set_limits(self) -> None:
            look(self.slot.pid)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spawning, "Birth", Seen)  # the child waits for its score then
            finish(asleep(join=join, uid=0, gid=0, oom_score_adj=1000))
        assert seen == ["no\n"]
        other = asleep(join=join, uid=0, gid=0)
        look(other.pid)
        assert seen[1].strip().endswith("sleep"), "what it executes is the namespace's own"
        finish(other)
    finally:
        os.close(space)
        finish(owner)


def asleep(**fields: object) -> Child:
    spec = SpawnSpec(path="/bin/sleep", argv=("sleep", "60"), **fields)  # type: ignore[arg-type]
    return spawn(spec)


def finish(child: Child) -> None:
    child.kill(signal.SIGKILL)
    child.wait(10)
    child.close()


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup v1 with a number-of-processes controller."""
    path = f"/sys/fs/cgroup/pids/test-native-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"no cgroup v1: {error}")
    yield path
    os.rmdir(path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "rootfs"
    yield root
    unmount_all(str(root))
    assert not mounts_below(str(tmp_path))


# --- processes ------------------------------------------------------------------------------


def test_new_namespaces_are_the_childs_alone() -> None:
    ours = namespaces()
    child = asleep(namespaces=ALL_NEW)
    theirs = namespaces(child.pid)
    finish(child)
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert changed == {"ipc", "mnt", "net", "pid", "pid_for_children", "uts"}
    assert namespaces() == ours


@pytest.mark.parametrize("join", [False, True], ids=["direct", "through an intermediate"])
def test_the_child_is_a_waitable_child_of_ours_in_its_pid_namespace(join: bool) -> None:
    entered = ()
    with FdSet() as fds:
        if join:
            entered = ((fds.open("/proc/self/ns/uts", os.O_RDONLY), linux.CLONE_NEWUTS),)
        stdin, go = fds.pipe()
        output, stdout = fds.pipe()
        child = spawn(
            SpawnSpec(
                path="/bin/sh",
                argv=("sh", "-c", "echo $$; read x; exit 7"),
                fds={0: stdin, 1: stdout, 2: 2},
                namespaces=linux.CLONE_NEWPID,
                join=entered,
            )
        )
        fds.close_one(stdout)
        assert os.read(output, 10) == b"1\n"
        assert child.pid != 1
        assert owns(child.pid)
        assert f"PPid:\t{os.getpid()}" in Path(f"/proc/{child.pid}/status").read_text()
        assert child.poll() is None
        fds.close_one(go)
    assert os.waitstatus_to_exitcode(child.wait(10)) == 7
    assert not owns(child.pid)
    child.close()


def test_id_maps_and_credentials() -> None:
    text = script(
        "cat /proc/self/uid_map /proc/self/setgroups; id -u; id -g",
        namespaces=linux.CLONE_NEWUSER,
        uid_maps=IDENTITY,
        gid_maps=IDENTITY,
        uid=0,
        gid=0,
    )
    assert text.split() == ["0", "0", "4294967295", "deny", "0", "0"]


@pytest.mark.parametrize("join", [False, True], ids=["direct", "through an intermediate"])
def test_ambient_capabilities_of_nobody(join: bool) -> None:
    caps = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_CHROOT | 1 << CAP_SETPCAP
    with FdSet() as fds:
        net = fds.open("/proc/self/ns/net", os.O_RDONLY)
        text = script(
            "grep -E '^(Uid|Gid|CapInh|CapPrm|CapEff|CapAmb)' /proc/self/status",
            namespaces=linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWPID,
            join=((net, linux.CLONE_NEWNET),) if join else (),
            uid_maps=NOBODY,
            gid_maps=NOBODY,
            uid=65534,
            gid=65534,
            ambient_caps=caps,
            setsid=True,
            pdeathsig=signal.SIGKILL,
        )
    fields = dict(line.split(":\t") for line in text.splitlines())
    assert fields["Uid"] == "\t".join(["65534"] * 4)
    assert fields["Gid"] == "\t".join(["65534"] * 4)
    assert {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Amb")} == {f"{caps:016x}"}


def test_an_unmapped_user_id_is_an_error_that_leaves_nothing() -> None:
    with pytest.raises(Failed, match=r"spawn /bin/true: set user id 0: invalid argument"):
        spawn(
            SpawnSpec(
                path="/bin/true",
                argv=("true",),
                namespaces=linux.CLONE_NEWUSER | linux.CLONE_NEWPID,
                uid_maps=NOBODY,
                gid_maps=IDENTITY,
                gid=0,
                uid=0,
            )
        )


def test_overlapping_id_maps_are_an_error() -> None:
    with pytest.raises(Failed, match="write uid_map: invalid argument"):
        asleep(namespaces=linux.CLONE_NEWUSER, uid_maps=IDENTITY * 2, gid_maps=IDENTITY)


@pytest.mark.parametrize("name", ["tasks", "cgroup.procs"])
def test_cgroup_v1_is_joined_by_the_child_alone(cgroup: str, name: str) -> None:
    before = Path("/proc/self/cgroup").read_text()
    child = asleep(cgroup_procs=(f"{cgroup}/{name}",), namespaces=ALL_NEW)
    assert Path(f"{cgroup}/cgroup.procs").read_text().split() == [str(child.pid)]
    assert Path("/proc/self/cgroup").read_text() == before
    finish(child)


def test_a_cgroup_that_is_missing_is_named(cgroup: str) -> None:
    paths = (f"{cgroup}/cgroup.procs", f"{cgroup}/missing/cgroup.procs")
    message = f"spawn /bin/sleep: join cgroup {paths[1]}: no such file or directory"
    with pytest.raises(Failed) as caught:
        asleep(cgroup_procs=paths)
    assert str(caught.value) == message
    assert Path(f"{cgroup}/cgroup.procs").read_text() == ""


def test_cgroup_v2_is_joined_at_the_clone() -> None:
    root = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if is_cgroup2(p)), None)
    if root is None:
        pytest.skip("no cgroup v2")
    path = f"{root}/test-native-{os.getpid()}"
    os.mkdir(path)
    try:
        with FdSet() as fds:
            fd = fds.open(path, os.O_RDONLY | os.O_DIRECTORY)
            net = fds.open("/proc/self/ns/net", os.O_RDONLY)
            for join in ((), ((net, linux.CLONE_NEWNET),)):
                child = asleep(cgroup_fd=fd, join=join, namespaces=ALL_NEW)
                assert Path(f"{path}/cgroup.procs").read_text().split() == [str(child.pid)]
                finish(child)
            with pytest.raises(Failed, match="join cgroup of the given descriptor"):
                asleep(cgroup_fd=net)
    finally:
        os.rmdir(path)


def is_cgroup2(path: str) -> bool:
    return os.path.exists(f"{path}/cgroup.controllers")


def test_a_network_namespace_is_entered() -> None:
    first = asleep(namespaces=linux.CLONE_NEWNET)
    with FdSet() as fds:
        net = fds.open(f"/proc/{first.pid}/ns/net", os.O_RDONLY)
        second = asleep(join=((net, linux.CLONE_NEWNET),), namespaces=linux.CLONE_NEWUSER)
        assert namespaces(second.pid)["net"] == namespaces(first.pid)["net"]
        assert namespaces(second.pid)["user"] != namespaces()["user"]
        finish(second)
        null = fds.open(os.devnull, os.O_RDWR)
        with pytest.raises(Failed, match="enter network namespace: invalid argument"):
            asleep(join=((null, linux.CLONE_NEWNET),))
    finish(first)


def test_pid_and_user_namespaces_are_entered() -> None:
    first = asleep(
        namespaces=linux.CLONE_NEWUSER | linux.CLONE_NEWPID,
        uid_maps=IDENTITY,
        gid_maps=IDENTITY,
    )
    with FdSet() as fds:
        user = fds.open(f"/proc/{first.pid}/ns/user", os.O_RDONLY)
        pids = fds.open(f"/proc/{first.pid}/ns/pid", os.O_RDONLY)
        second = asleep(
            join=((pids, linux.CLONE_NEWPID), (user, linux.CLONE_NEWUSER)),
            uid=0,
            gid=0,
            pdeathsig=signal.SIGKILL,
        )
        theirs = namespaces(second.pid)
        assert theirs["pid"] == namespaces(first.pid)["pid"]
        assert theirs["user"] == namespaces(first.pid)["user"]
        assert second.start_time == start_time(second.pid)
        # Only the end of the namespace's init takes it along, which proves the number was ours.
        first.kill(signal.SIGKILL)
        assert os.waitstatus_to_exitcode(second.wait(10)) == -signal.SIGKILL
        second.close()
    finish(first)


def test_oom_score_and_limits_are_set_from_outside_of_the_user_namespace() -> None:
    import resource

    text = script(
        "cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; ulimit -l",
        namespaces=linux.CLONE_NEWUSER,
        uid_maps=NOBODY,
        gid_maps=NOBODY,
        uid=65534,
        gid=65534,
        oom_score_adj=321,
        rlimits={resource.RLIMIT_NOFILE: (77, 99), resource.RLIMIT_MEMLOCK: (-1, -1)},
    )
    score, soft, hard, memlock = text.split()
    assert (score, soft, hard) == ("321", "77", "99")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    assert memlock in ("unlimited", str(limit // 1024))


@pytest.mark.parametrize("regime", ["nobody", "root"])
def test_the_child_dies_with_its_parent_but_not_with_a_thread(regime: str, tmp_path: Path) -> None:
    program = """
import signal, sys, threading
from runtime.host import linux
from runtime.host import spawn as spawning
from runtime.host.spawn import IdMap, SpawnSpec, spawn
some = sys.argv[1] == "nobody"
ids = (IdMap(container_id=65534 if some else 0, host_id=65534 if some else 0, size=1),)
def work():
    global child
    child = spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60"), pdeathsig=signal.SIGKILL,
        namespaces=linux.CLONE_NEWUSER | linux.CLONE_NEWPID, uid_maps=ids, gid_maps=ids,
        uid=ids[0].container_id, gid=ids[0].container_id,
        ambient_caps=1 << 21 if some else 0, setsid=True))
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert child.poll() is None
print(child.pid, child.start_time, flush=True)
sys.stdin.read()
assert child.poll() is None
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, regime],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None and parent.stdin is not None
    pid, started = map(int, parent.stdout.readline().split())
    with Foreign.open(pid, started) or pytest.fail("it's gone with the thread") as child:
        assert not child.wait_gone(0.2)
        parent.kill()
        parent.wait()
        assert child.wait_gone(5)
    parent.stdin.close()
    parent.stdout.close()


# --- mounts ---------------------------------------------------------------------------------


def test_an_overlay_of_long_layers(tmp_path: Path, place: Path) -> None:
    layers = [tmp_path / f"{number:03}-{'x' * 120}" for number in range(60)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"file-{number}").write_text(str(number))
        (layer / "who").write_text(str(number))
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = (
        "index=off",
        f"workdir={tmp_path}/work",
        f"upperdir={tmp_path}/upper",
        "lowerdir=" + ":".join(map(str, layers)),
    )
    assert len(options[-1]) > 8000
    cwd = os.getcwd()
    mount_rootfs([RootfsMount(type="overlay", source="overlay", options=options)], str(place))
    assert os.getcwd() == cwd
    assert (place / "who").read_text() == "0"
    assert {p.name for p in place.iterdir()} == {"who"} | {f"file-{n}" for n in range(60)}
    (place / "new").write_text("")
    assert (tmp_path / "upper/new").exists()


@pytest.mark.parametrize("option", ["ro", "rw", "rro"])
def test_a_bind_mount(tmp_path: Path, place: Path, option: str) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    linux.mount("inner", str(source / "inner"), "tmpfs", linux.MS_NOSUID)
    try:
        mount_rootfs(
            [RootfsMount(type="bind", source=str(source), options=("rbind", option, "nodev"))],
            str(place),
        )
        outer, inner = os.statvfs(place), os.statvfs(place / "inner")
        assert bool(outer.f_flag & os.ST_RDONLY) == (option != "rw")
        assert bool(inner.f_flag & os.ST_RDONLY) == (option == "rro")
        assert outer.f_flag & os.ST_NODEV
        assert not os.statvfs(source).f_flag & (os.ST_RDONLY | os.ST_NODEV)
        assert not os.statvfs(source / "inner").f_flag & os.ST_RDONLY
    finally:
        unmount_all(str(place))
        linux.umount2(str(source / "inner"))


def test_a_read_only_bind_keeps_the_flags_of_its_source(tmp_path: Path, place: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    linux.mount("inner", str(source), "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC)
    try:
        mount_rootfs(
            [RootfsMount(type="bind", source=str(source), options=("bind", "ro"))], str(place)
        )
        flags = os.statvfs(place).f_flag
        assert flags & os.ST_NOSUID and flags & os.ST_NOEXEC and flags & os.ST_RDONLY
    finally:
        unmount_all(str(place))
        linux.umount2(str(source))


def test_targets_and_pseudo_options(tmp_path: Path, place: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "link").symlink_to("/data")
    (source / "up").symlink_to("../../../../../..")
    mounts = [
        RootfsMount(type="bind", source=str(source), options=("rbind", "rslave", "X-a.b=c")),
        RootfsMount(type="tmpfs", source="tmpfs", target="/link", options=("size=64k", "mode=700")),
        RootfsMount(type="tmpfs", source="tmpfs", target="up", options=("ro",)),
    ]
    mount_rootfs(mounts, str(place))
    # Absolute and climbing links end at the root file system, not at the host's root.
    assert mounts_below(str(place)) == [f"{place}/data", str(place), str(place)]
    unmount_all(str(place))
    assert mounts_below(str(place)) == []
    unmount_all(str(place))


def test_a_failure_half_way_unmounts_all(tmp_path: Path, place: Path) -> None:
    mounts = [
        RootfsMount(type="tmpfs", source="tmpfs"),
        RootfsMount(type="tmpfs", source="tmpfs"),
        RootfsMount(type="bind", source=str(tmp_path / "missing"), options=("bind",)),
    ]
    message = f"mount bind {tmp_path}/missing on {place}: no such file or directory"
    with pytest.raises(Failed) as caught:
        mount_rootfs(mounts, str(place))
    assert str(caught.value) == message
    assert mounts_below(str(place)) == []


def test_a_busy_tree_with_odd_names_is_unmounted(tmp_path: Path, place: Path) -> None:
    odd = place / "a b\tc\\040\n#"
    mount_rootfs([RootfsMount(type="tmpfs", source="tmpfs")], str(place))
    odd.mkdir()
    mount_rootfs([RootfsMount(type="tmpfs", source="tmpfs")], str(odd))
    mount_rootfs([RootfsMount(type="tmpfs", source="tmpfs")], str(odd))
    assert mounts_below(str(place)) == [str(odd), str(odd), str(place)]
    (odd / "file").touch()
    with open(odd / "file"):
        unmount_all(str(place))
    assert mounts_below(str(place)) == []


def test_neighbours_and_link_targets_are_left_alone(tmp_path: Path, place: Path) -> None:
    other = Path(f"{place}2")
    other.mkdir()
    linux.mount("other", str(other), "tmpfs")
    try:
        place.symlink_to(other)
        unmount_all(str(place))
        assert mounts_below(str(other)) == [str(other)]
    finally:
        place.unlink()
        linux.umount2(str(other))


def image(path: Path, *command: str) -> Path:
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    return path


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="no mkfs.ext4")
def test_a_file_system_image_through_a_loop_device(tmp_path: Path, place: Path) -> None:
    file = image(tmp_path / "image", "mkfs.ext4", "-q", "-O", "^has_journal")
    for options in (("loop", "ro"), ("loop", "rw"), ("ro",)):
        try:
            mount_rootfs([RootfsMount(type="ext4", source=str(file), options=options)], str(place))
        except Failed as error:
            if "/dev/loop" in str(error):
                pytest.skip(str(error))
            raise
        assert (place / "lost+found").is_dir()
        assert bool(os.statvfs(place).f_flag & os.ST_RDONLY) == ("ro" in options)
        assert loops_behind(file)
        unmount_all(str(place))
        deadline = time.monotonic() + 5
        while loops_behind(file) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not loops_behind(file)


def loops_behind(file: Path) -> list[Path]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if path.read_text().strip() == str(file):
                found.append(path)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "bind"])
def test_mapped_ids(tmp_path: Path, place: Path, kind: str) -> None:
    lowers = [tmp_path / f"lower {number}" for number in range(2)]
    for number, lower in enumerate(lowers):
        lower.mkdir()
        (lower / f"file{number}").touch()
        os.chown(lower / f"file{number}", 5, 6)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    maps = ("uidmap=0:100000:65536", "gidmap=0:200000:65536")
    source, options = {
        "tmpfs": ("tmpfs", ()),
        "overlay": (
            "overlay",
            (
                f"upperdir={tmp_path}/upper",
                f"workdir={tmp_path}/work",
                "lowerdir=" + ":".join(map(str, lowers)),
            ),
        ),
        "bind": (str(lowers[0]), ("rbind", "ro")),
    }[kind]
    ours = namespaces()
    mount = RootfsMount(type=kind, source=source, options=(*options, *maps))
    try:
        mount_rootfs([mount], str(place))
    except Unsupported as error:
        pytest.skip(str(error))
    assert mounts_below(str(tmp_path)) == [str(place)]
    assert namespaces() == ours
    if kind == "tmpfs":
        assert os.stat(place).st_uid == 100000
    else:
        found = os.stat(place / "file0")
        assert (found.st_uid, found.st_gid) == (100005, 200006)
    if kind == "overlay":
        assert os.stat(place / "file1").st_uid == 100005
        (place / "written").touch()
    if kind == "bind":
        assert os.statvfs(place).f_flag & os.ST_RDONLY
    assert os.stat(lowers[0] / "file0").st_uid == 5


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("uidmap=0:1:2",), InvalidRequest),
        (("uidmap=0:1", "gidmap=0:0:1"), InvalidRequest),
        (("uidmap=0:1:99999999999999", "gidmap=0:0:1"), InvalidRequest),
        (("nonsense",), Failed),
        (("mode=7\0",), InvalidRequest),
        (("size=" + "9" * 5000,), InvalidRequest),
    ],
)
def test_bad_options(place: Path, options: tuple[str, ...], error: type[RuntimeFault]) -> None:
    with pytest.raises(error):
        mount_rootfs([RootfsMount(type="tmpfs", source="tmpfs", options=options)], str(place))
    assert mounts_below(str(place)) == []


def test_a_fuse_helper(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = RootfsMount(type="fuse3.thing", source="this", options=("ro", "a=b"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if not any(os.path.exists(f"{d}/mount.fuse3") for d in ("/sbin", "/usr/local/sbin")):
        with pytest.raises(Unsupported, match=r"mount\.fuse3 isn't installed"):
            mount_rootfs([mount], str(place))
    helper = tmp_path / "mount.fuse3"
    helper.write_text('#!/bin/sh\necho "args: $*"\nexec /bin/mount -t tmpfs "$1" "$2"\n')
    helper.chmod(0o755)
    mount_rootfs([mount], str(place))
    assert mounts_below(str(place)) == [str(place)]
    helper.write_text('#!/bin/sh\necho "args: $*"\nexit 3\n')
    text = rf"mount\.fuse3 ended with status 3: args: this {place} -o ro -o a=b -t thing"
    with pytest.raises(Failed, match=text):
        mount_rootfs([mount], str(place))
