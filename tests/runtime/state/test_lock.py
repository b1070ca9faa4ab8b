import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.base.errors import AlreadyExists, DeadlineExceeded, InvalidRequest, NotFound
from runtime.state.lock import StateLock, find_id, list_ids

ROOT = Path(__file__).resolve().parents[3]


def make(root: Path, *names: str) -> str:
    for name in names:
        (root / name).touch()
    return str(root)


def test_the_lock_is_the_file_that_runsc_locks(tmp_path: Path) -> None:
    with StateLock(str(tmp_path), "c1", "s1") as lock:
        assert lock.path == f"{tmp_path}/c1_sandbox:s1.lock"
        with open(lock.path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(lock.path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_it_excludes_another_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom runtime.state.lock import StateLock\n"
        f"lock = StateLock({str(tmp_path)!r}, 'c1', 'c1').acquire()\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    lock = StateLock(str(tmp_path), "c1", "c1")
    with pytest.raises(DeadlineExceeded, match=r"c1_sandbox:c1\.lock"):
        lock.acquire(0.05)
    assert not lock.held
    child.kill()  # a lock ends with its holder
    child.wait()
    child.stdin.close()
    child.stdout.close()
    lock.acquire(5.0)
    lock.release()
    lock.release()


def test_a_file_that_is_replaced_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = StateLock(str(tmp_path), "c1", "c1")
    looks = []

    def replaced(_: int) -> bool:
        os.replace(make_file(tmp_path / "other"), lock.path)
        looks.append(1)
        return False

    monkeypatch.setattr(lock, "_is_current", replaced)
    with pytest.raises(DeadlineExceeded, match=r"c1_sandbox:c1\.lock"):
        lock.acquire(0.05)
    assert 1 < len(looks) < 100 and not lock.held


def make_file(path: Path) -> Path:
    path.touch()
    return path


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    first, second = (StateLock(str(tmp_path), "c1", "c1") for _ in range(2))
    first.acquire()
    waiting = threading.Event()
    taken = threading.Event()

    def wait() -> None:
        waiting.set()
        second.acquire(5.0)
        taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(5)
    first.remove()
    first.release()
    assert taken.wait(5)
    thread.join()
    with pytest.raises(DeadlineExceeded):
        first.acquire(0.0)
    second.release()


class _Late(StateLock):
    """Whose file is removed in the moment in which it is locked."""

    removed = False

    def _is_current(self, fd: int) -> bool:
        if not self.removed:
            self.removed = True
            os.unlink(self.path)
        return super()._is_current(fd)


def test_a_lock_of_a_file_that_is_no_more_is_worth_nothing(tmp_path: Path) -> None:
    with _Late(str(tmp_path), "c1", "c1") as lock:
        assert lock.removed and os.path.exists(lock.path)
        with pytest.raises(DeadlineExceeded):
            StateLock(str(tmp_path), "c1", "c1").acquire(0.0)


@pytest.mark.parametrize("sandbox", ["c1", "other"])
def test_a_second_container_of_the_same_id_is_refused(tmp_path: Path, sandbox: str) -> None:
    root = tmp_path / "root"
    with StateLock(str(root), "c1", "c1").acquire_for_new():
        make(root, "c1_sandbox:c1.state")
    lock = StateLock(str(root), "c1", sandbox)
    with pytest.raises(AlreadyExists, match="container 'c1' already exists"):
        lock.acquire_for_new()
    assert not lock.held
    (root / "c1_sandbox:c1.state").unlink()
    lock.acquire_for_new()
    lock.release()


def test_creations_at_once_have_one_winner(tmp_path: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        try:
            with StateLock(str(tmp_path), "c1", "c1").acquire_for_new():
                make(tmp_path, "c1_sandbox:c1.state")
            outcomes.append("made")
        except AlreadyExists:
            outcomes.append("exists")

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists"] * 7 + ["made"]


def test_finding_by_name_or_its_beginning(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "abc_sandbox:abc.state",
        "abcd_sandbox:abc.shim.json",
        "xyz_sandbox:abc.state",
        "xyz_sandbox:abc.shim.json",
        "lock_sandbox:abc.lock",
        ".hid_sandbox:abc.state",
        "noise.state",
    )
    assert list_ids(root) == [("abc", "abc"), ("abcd", "abc"), ("xyz", "abc")]
    assert find_id(root, "abc") == ("abc", "abc")
    assert find_id(root, "abcd") == ("abcd", "abc")
    assert find_id(root, "x") == ("xyz", "abc")
    with pytest.raises(InvalidRequest, match='"ab" is ambiguous: abc, abcd'):
        find_id(root, "ab")
    with pytest.raises(NotFound, match='container "q" does not exist'):
        find_id(root, "q")
    for bad in ("", "../x", "a:b", "a\0"):
        with pytest.raises(InvalidRequest):
            find_id(root, bad)
    assert list_ids(f"{root}/none") == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "c1_sandbox:c1.lock").symlink_to(target)
    with pytest.raises(OSError):
        StateLock(str(tmp_path), "c1", "c1").acquire(0.0)
    assert not os.path.exists(target)


def test_the_root_directory_is_made_for_a_new_container(tmp_path: Path) -> None:
    root = tmp_path / "a" / "root"
    with StateLock(str(root), "c1", "c1").acquire_for_new():
        assert root.stat().st_mode & 0o777 == 0o711
