import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from runtime.base.errors import InvalidRequest
from shim.base import sockets


def test_address_recipe() -> None:
    # containerd's SocketAddress: sha256 of filepath.Join(address, namespace, id).
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/abc").hexdigest()
    path = sockets.socket_path("", "/run/containerd//./containerd.sock", "k8s.io", "abc")
    assert path == f"/run/containerd/s/{digest}"


def test_address_recipe_without_a_grpc_address_and_for_debug() -> None:
    path = sockets.socket_path("/x", "", "k8s.io", "abc", debug=True)
    assert path == "/x/" + hashlib.sha256(b"k8s.io/abc/debug").hexdigest()


def test_double_slash_is_cleaned_as_go_does() -> None:
    one = sockets.socket_path("/x", "//run/c.sock", "ns", "a")
    assert one == sockets.socket_path("/x", "/run/c.sock", "ns", "a")


@pytest.mark.parametrize("directory", ["relative", "/" + "d" * 50])
def test_odd_socket_dirs(directory: str) -> None:
    with pytest.raises(InvalidRequest, match="socket_dir"):
        sockets.socket_path(directory, "/a", "ns", "id")


def test_listen_and_the_second_comer(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    fd = sockets.listen(path)
    assert fd is not None
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert not os.get_inheritable(fd)
        assert sockets.is_served(path)
        assert sockets.listen(path) is None
        assert sockets.remove_stale(path) is False
        assert os.path.exists(path)
    finally:
        os.close(fd)
    assert not sockets.is_served(path)


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    before = os.stat(path).st_ino
    fd = sockets.listen(path)
    assert fd is not None
    os.close(fd)
    assert sockets.remove_stale(path)
    assert not os.path.exists(path)
    assert before


def test_full_backlog_is_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    peers = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        try:
            while True:
                peer = socket.socket(socket.AF_UNIX)
                peers.append(peer)
                peer.setblocking(False)
                try:
                    peer.connect(path)
                except BlockingIOError:
                    break
            assert sockets.is_served(path)
            assert sockets.listen(path) is None
        finally:
            for peer in peers:
                peer.close()


def test_path_of() -> None:
    assert sockets.path_of("unix:///run/s/a") == "/run/s/a"
    assert sockets.path_of("/abstract") == ""
    assert sockets.path_of("unix://relative") == ""
