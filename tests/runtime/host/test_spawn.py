"""Process start, without privileges: what the child gets, what comes back, what is left over."""

from __future__ import annotations

import errno
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.host import linux
from runtime.host import spawn as spawning
from runtime.host.fds import FdSet
from runtime.host.spawn import reap_orphans, spawn, userns
from runtime.host.spawn_spec import IdMap, SpawnSpec
from tests.runtime.leaks import WAIT, nothing_is_left, our_children, run

__all__ = ("nothing_is_left",)

PYTHON = os.path.realpath(sys.executable)


def report(program: str, **fields: Any) -> Any:
    """What a Python program finds in the child: it gives a value for ``result``, sent as JSON."""
    with FdSet() as fds:
        reader, writer = fds.pipe()
        ours = {1: writer, 2: 2, **fields.pop("fds", {})}
        text = f"import json, os\n{program}\nprint(json.dumps(result))"
        child = spawn(SpawnSpec(path=PYTHON, argv=("python", "-ISc", text), fds=ours, **fields))
        fds.close_one(writer)
        output = b""
        while chunk := os.read(reader, 65536):
            output += chunk
        assert run(child) == 0
    return json.loads(output)


def status_field(name: str) -> str:
    return f"result = dict(l.split(':') for l in open('/proc/self/status'))['{name}'].strip()"


# --- errors ---------------------------------------------------------------------------------


def test_a_missing_program_is_named() -> None:
    with pytest.raises(Failed) as caught:
        spawn(SpawnSpec(path="/no/such/program", argv=("x",)))
    assert str(caught.value) == "spawn /no/such/program: execute: no such file or directory"


def test_what_is_no_program(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("text")
    file.chmod(0o755)
    with pytest.raises(Failed, match="execute: exec format error"):
        spawn(SpawnSpec(path=str(file), argv=("x",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cwd": "/nowhere"}, "change directory to /nowhere: no such file or directory"),
        ({"controlling_tty": 0}, "make file descriptor 0 the controlling terminal: inappropriate"),
        ({"fds": {5: 999}}, "place file descriptor 5: bad file descriptor"),
        ({"cgroup_procs": ("/nowhere/tasks",)}, "join cgroup /nowhere/tasks: no such file"),
        ({"join": ((0, linux.CLONE_NEWUTS),)}, "enter uts namespace: "),
        ({"pdeathsig": 99}, "set the parent death signal: invalid argument"),
        ({"rlimits": {resource.RLIMIT_CORE: (2, 1)}}, "set resource limit 4: "),
    ],
)
def test_a_step_that_fails_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Failed) as caught:
        spawn(SpawnSpec(path="/bin/true", argv=("true",), **fields))
    assert str(caught.value).startswith(f"spawn /bin/true: {message}")


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"path": "/bin/tr\0ue"},
        {"cwd": "\0"},
        {"env": {"A": "\0"}},
        {"env": {"A=B": "C"}},
        {"env": {"": "C"}},
        {"fds": {-1: 0}},
        {"fds": {0: -1}},
        {"fds": {1 << 20: 0}},
        {"join": ((-1, linux.CLONE_NEWNET),)},
        {"join": ((0, 5),)},
        {"namespaces": linux.CLONE_NEWTIME},
        {"namespaces": signal.SIGKILL},
        {"ambient_caps": 1 << 64},
        {"uid_maps": (IdMap(container_id=0, host_id=0, size=1),)},
    ],
)
def test_what_cannot_be_expressed_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        spawn(SpawnSpec(**{"path": "/bin/true", "argv": ("true",), **fields}))


def test_a_start_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening it for writing blocks as long as nobody reads
    step = f"join cgroup {fifo}"
    for seconds in (0.1, 1.0, 8.0):  # a busy machine may not let it get to the step so soon
        monkeypatch.setattr(spawning, "TIMEOUT", seconds)
        with pytest.raises(Failed, match=f"no progress within {seconds:g} s$") as caught:
            spawn(SpawnSpec(path="/bin/true", argv=("true",), cgroup_procs=(str(fifo),)))
        if step in str(caught.value):
            break
    assert str(caught.value) == f"spawn /bin/true: {step}: no progress within {seconds:g} s"


def test_an_intermediate_process_makes_the_child_ours(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    result = "result = os.getppid()"
    fields: dict[str, Any] = {"cgroup_procs": tuple(map(str, files))}
    assert report(result, **fields) == os.getpid()
    assert report(result, pdeathsig=signal.SIGKILL, setsid=True, **fields) == os.getpid()
    assert [file.read_text() for file in files] == ["0", "0"]
    with pytest.raises(Failed, match="/nowhere: execute: no such file or directory"):
        spawn(SpawnSpec(path="/nowhere", argv=("x",), **fields))
    with pytest.raises(Failed, match="change directory to /nowhere"):
        spawn(SpawnSpec(path="/bin/true", argv=("x",), cwd="/nowhere", **fields))


def test_old_kernels_and_strict_filters(tmp_path: Path) -> None:
    """Without clone3 and close_range: the cgroup is joined by hand, descriptors one by one."""
    (tmp_path / "cgroup.procs").touch()
    program = f"""
import ctypes, os, struct
from runtime.host.spawn import SpawnSpec, spawn
code = struct.pack("HBBIHBBIHBBIHBBIHBBI", 0x20,0,0,0, 0x15,1,0,435, 0x15,0,1,436,
    0x06,0,0,0x50000 | 38, 0x06,0,0,0x7fff0000)
block = ctypes.create_string_buffer(code)
libc = ctypes.CDLL(None, use_errno=True)
assert not libc.prctl(38, 1, 0, 0, 0)
filter = struct.pack("HxxxxxxP", 5, ctypes.addressof(block))
assert not libc.prctl(22, 2, filter), ctypes.get_errno()
stray = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(stray, True)
directory = os.open({str(tmp_path)!r}, os.O_PATH)
for fields in ({{}}, {{"cgroup_fd": directory}}):
    child = spawn(SpawnSpec(path="/bin/sh", argv=("sh", "-c", f"test ! -e /proc/self/fd/{{stray}}"),
        fds={{2: 2}}, **fields))
    assert child.wait(10) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "cgroup.procs").read_text() == "0"


# --- what the child gets --------------------------------------------------------------------

LIST_FDS = """
result = {}
for n in os.listdir('/proc/self/fd'):
    try: result[n] = [os.readlink('/proc/self/fd/' + n), os.fstat(int(n)).st_ino]
    except OSError: pass
"""


def test_only_the_given_descriptors_arrive_and_the_null_device_fills_in() -> None:
    with FdSet() as fds:
        for _ in range(20):
            os.set_inheritable(fds.open(os.devnull, os.O_RDWR), True)
        found = report(LIST_FDS)
    assert set(found) == {"0", "1", "2"}
    assert found["0"][0] == "/dev/null"
    with FdSet() as fds:
        reader, writer = fds.pipe()
        program = "import sys; sys.exit(os.write(9, b'x'.join(map(os.read, (0,), (9,)))))"
        spec = SpawnSpec(
            path=PYTHON, argv=("python", "-ISc", "import os;" + program), fds={9: writer}
        )
        assert run(spawn(spec)) == 0
        del reader


@pytest.mark.parametrize("shift", [1, -1, 2, 0])
def test_overlapping_numbers(shift: int) -> None:
    """A rotation within the very numbers that the descriptors have here already."""
    with FdSet() as fds:
        files = [fds.add(os.memfd_create(f"f{n}")) for n in range(6)]
        inodes = [os.fstat(fd).st_ino for fd in files]
        numbers = files[shift:] + files[:shift]
        found = report(LIST_FDS, fds=dict(zip(numbers, files, strict=True)))
    got = {int(n): inode for n, (_, inode) in found.items() if int(n) > 2}
    assert got == dict(zip(numbers, inodes, strict=True))


def test_gaps_repeats_and_high_numbers() -> None:
    with FdSet() as fds:
        file = fds.add(os.memfd_create("file"))
        inode = os.fstat(file).st_ino
        found = report(LIST_FDS, fds={3: file, 40: file, 700: file})
    assert set(found) == {"0", "1", "2", "3", "40", "700"}
    assert {found[n][1] for n in ("3", "40", "700")} == {inode}


def test_the_place_that_a_descriptor_came_from_is_closed() -> None:
    with FdSet() as fds:
        file = fds.open(os.devnull, os.O_RDWR)
        os.set_inheritable(file, True)
        found = report(LIST_FDS, fds={file + 20: file})
    assert set(found) == {"0", "1", "2", str(file + 20)}


def test_a_start_that_hangs_keeps_nothing_of_ours_open(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    results: list[int] = []
    spec = SpawnSpec(path="/bin/true", argv=("true",), cgroup_procs=(str(fifo),))
    with FdSet() as fds:
        reader, writer = fds.pipe()
        before = our_children()
        thread = threading.Thread(target=lambda: results.append(run(spawn(spec))))
        thread.start()
        deadline = time.monotonic() + WAIT
        while our_children() == before and time.monotonic() < deadline:
            time.sleep(0.001)
        fds.close_one(writer)
        ended = bool(select.select([reader], [], [], WAIT / 4)[0])
        fds.add(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))  # lets it go on
        thread.join()
    assert ended
    assert results == [0]


def test_the_standard_numbers_can_be_swapped() -> None:
    with FdSet() as fds:
        reader, writer = fds.pipe()
        program = "import os; os.write(1, b'out'); os.write(2, b'err')"
        spec = SpawnSpec(
            path=PYTHON, argv=("python", "-ISc", program), fds={1: writer, 2: writer, 0: reader}
        )
        child = spawn(spec)
        fds.close_one(writer)
        assert run(child) == 0
        assert os.read(reader, 10) == b"outerr"


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    result = "result = dict(os.environ)"
    assert report(result, env={}).keys() <= {"LC_CTYPE"}
    assert report(result, env={"A": "b=c", "Ü": "ß"}).items() >= {("A", "b=c"), ("Ü", "ß")}
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    monkeypatch.setenv("LISTEN_FDS", "1")
    inherited = report(result)
    assert inherited["KEPT"] == "yes"
    assert not inherited.keys() & {"NOTIFY_SOCKET", "LISTEN_FDS"}


def test_the_working_directory(tmp_path: Path) -> None:
    assert report("result = os.getcwd()", cwd=str(tmp_path)) == str(tmp_path)
    assert report("result = os.getcwd()") == os.getcwd()


def test_arguments_are_passed_as_they_are() -> None:
    with FdSet() as fds:
        reader, writer = fds.pipe()
        argv = ("name", "-c", 'printf "%s|" "$0" "$@"', "a b", "", "$HOME", "ü\udcff")
        child = spawn(SpawnSpec(path="/bin/sh", argv=argv, fds={1: writer}))
        fds.close_one(writer)
        assert run(child) == 0
        assert os.read(reader, 100) == b"a b||$HOME|\xc3\xbc\xff|"


def test_a_session_of_its_own() -> None:
    result = "result = [os.getsid(0), os.getpid()]"
    session, pid = report(result, setsid=True)
    assert session == pid
    session, pid = report(result)
    assert session == os.getsid(0)


def test_a_controlling_terminal() -> None:
    master, slave = pty.openpty()
    with FdSet() as fds:
        fds.add(master)
        fds.add(slave)
        name = os.ttyname(slave)
        result = "t = os.open('/dev/tty', os.O_RDWR)\nresult = [os.tcgetpgrp(t), os.getpid()]"
        spec = {"fds": {0: slave, 7: slave}, "setsid": True}
        group, pid = report(result, controlling_tty=7, **spec)
        assert group == pid
        child = spawn(
            SpawnSpec(
                path="/bin/sleep",
                argv=("sleep", "60"),
                fds={0: slave, 1: slave, 2: slave},
                setsid=True,
                controlling_tty=0,
            )
        )
        assert os.readlink(f"/proc/{child.pid}/fd/0") == name
        os.write(master, b"\x03")  # ^C reaches the foreground group
        assert run(child) == -signal.SIGINT


def test_handlers_and_the_mask_are_reset() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        # Read before Python itself ignores some again.
        with FdSet() as fds:
            reader, writer = fds.pipe()
            argv = ("grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status")
            child = spawn(SpawnSpec(path="/bin/grep", argv=argv, fds={1: writer}))
            fds.close_one(writer)
            assert run(child) == 0
            masks = dict(line.split(":\t") for line in os.read(reader, 4096).decode().splitlines())
        assert masks.keys() == {"SigBlk", "SigIgn", "SigCgt"}
        assert int(masks["SigBlk"], 16) == 0
        assert int(masks["SigIgn"], 16) == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= {signal.SIGTERM, signal.SIGUSR1}
    finally:
        signal.signal(signal.SIGUSR2, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_limits() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = "from resource import *\nresult = [getrlimit(RLIMIT_NOFILE), getrlimit(RLIMIT_CORE)]"
    limits = {resource.RLIMIT_NOFILE: (50, 60), resource.RLIMIT_CORE: (0, 0)}
    assert report(result, rlimits=limits) == [[50, 60], [0, 0]]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard


def test_a_limit_that_may_not_be_raised_is_cut_down() -> None:
    program = """
import os, resource
from runtime.host.spawn import SpawnSpec, spawn
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))
argv = ("sh", "-c", 'test "$(ulimit -l)" != 4')
child = spawn(SpawnSpec(path="/bin/sh", argv=argv, rlimits={resource.RLIMIT_MEMLOCK: (-1, -1)}))
raise SystemExit(os.waitstatus_to_exitcode(child.wait(10)))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_oom_score_is_set_where_that_is_allowed() -> None:
    result = "result = int(open('/proc/self/oom_score_adj').read())"
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert report(result, oom_score_adj=777) == 777
    assert report(result, oom_score_adj=-1000) in (-1000, ours)
    assert int(Path("/proc/self/oom_score_adj").read_text()) == ours


@pytest.mark.parametrize("refused", [True, False])
def test_registering_for_membarriers_can_be_refused(refused: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("installing a filter needs CAP_SYS_ADMIN")
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 324, "aarch64": 283}[os.uname().machine]
result = [libc.syscall(number, command, 0, 0) for command in (0, 16, 4)]
result.append(ctypes.get_errno())
"""
    query, private, others, error = report(program, no_membarrier=refused)
    assert query > 0 and others == 0
    assert (private, error) == ((-1, errno.ENOSYS) if refused else (0, 0))


def test_the_table_of_descriptors_has_its_size_from_the_start() -> None:
    program = """
status = open("/proc/self/status").read()
result = [int(status.split("FDSize:")[1].split()[0]), len(os.listdir("/proc/self/fd"))]
"""
    small, count = report(program)
    assert report(program, fd_room=512) == [512, count] != [small, count]
    # Where a limit forbids the number it stays as it is.
    assert report(program, fd_room=512, rlimits={resource.RLIMIT_NOFILE: (100, 100)})[0] == small


def test_the_child_dies_with_its_parent() -> None:
    program = """
import signal, sys, threading
from runtime.host.spawn import SpawnSpec, spawn
def work():
    global child
    child = spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60"), pdeathsig=signal.SIGKILL))
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(child.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        # It outlives the thread that started it.
        assert not select.select([pidfd], [], [], 0.1)[0]
        parent.kill()
        parent.wait()
        assert select.select([pidfd], [], [], WAIT)[0]
    os.close(pidfd)


def user_namespaces() -> bool:
    unshare = "/usr/bin/unshare"
    return os.access(unshare, os.X_OK) and not subprocess.call([unshare, "-U", "/bin/true"])


@pytest.mark.skipif(not user_namespaces(), reason="user namespaces aren't permitted")
def test_a_user_namespace_of_an_ordinary_user() -> None:
    me = (IdMap(container_id=0, host_id=os.geteuid(), size=1),)
    my_group = (IdMap(container_id=0, host_id=os.getegid(), size=1),)
    new = linux.CLONE_NEWUSER | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWUTS
    result = "result = [os.getpid(), os.getuid(), os.getgid(), open('/proc/self/setgroups').read()]"
    found = report(
        result, namespaces=new, uid_maps=me, gid_maps=my_group, uid=0, gid=0, pdeathsig=9
    )
    assert found == [1, 0, 0, "deny\n"]
    fd = userns(me, my_group)
    assert os.readlink(f"/proc/self/fd/{fd}") != os.readlink("/proc/self/ns/user")
    os.close(fd)


# --- many at once ---------------------------------------------------------------------------


def test_many_starts_from_many_threads() -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            for turn in range(10):
                code = (number * 10 + turn) % 200
                fields: dict[str, Any] = {"pdeathsig": signal.SIGKILL} if turn % 2 else {}
                if turn % 5 == 0:
                    with pytest.raises(Failed, match="/nowhere: execute: no such file"):
                        spawn(SpawnSpec(path="/nowhere", argv=("x",), **fields))
                argv = ("sh", "-c", f"exit {code}")
                assert run(spawn(SpawnSpec(path="/bin/sh", argv=argv, **fields))) == code
                reap_orphans()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_no_descriptor_leaks_into_a_sibling() -> None:
    """A pipe ends when its one child is gone, whatever else was started meanwhile."""
    stop = threading.Event()

    def noise() -> None:
        while not stop.is_set():
            run(spawn(SpawnSpec(path="/bin/true", argv=("true",))))

    threads = [threading.Thread(target=noise) for _ in range(2)]
    for thread in threads:
        thread.start()
    sleepers = []
    try:
        for _ in range(10):
            with FdSet() as fds:
                reader, writer = fds.pipe()
                child = spawn(SpawnSpec(path="/bin/true", argv=("true",), fds={1: writer}))
                sleepers.append(spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60"))))
                fds.close_one(writer)
                assert run(child) == 0
                assert select.select([reader], [], [], WAIT)[0]
                assert os.read(reader, 1) == b""
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for child in sleepers:
            child.kill(signal.SIGKILL)
            assert run(child) == -signal.SIGKILL
