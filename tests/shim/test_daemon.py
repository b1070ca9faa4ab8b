from __future__ import annotations

import select
import socket
import time
from pathlib import Path

import pytest

from shim import daemon as module
from shim.daemon import Daemon
from shim.daemon_args import DaemonArgs
from shim.ttrpc.client import Client
from shim.ttrpc.errors import StatusError


@pytest.mark.parametrize("leaves", [True, False])
def test_the_end_after_a_sandbox_waits_for_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Who reads the reply finds the connection open; who doesn't close it holds nothing up."""
    monkeypatch.setattr(module, "GRACE", 60.0 if leaves else 0.2)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    daemon = Daemon(
        DaemonArgs(
            namespace="ns",
            id="p",
            bundle=str(tmp_path),
            address="",
            ttrpc_address="",
            publish_binary="",
            listener_fd=listener.detach(),
            socket_address=f"unix://{tmp_path}/s",
        )
    )
    told = select.poll()
    told.register(daemon._signals[0], select.POLLIN)
    daemon.reactor.start()
    daemon.publisher.start()
    daemon.server.start()
    client = Client(str(tmp_path / "s"))
    try:
        with pytest.raises(StatusError):
            client.call("a.b.C", "M", b"", timeout=20)
        began = time.monotonic()
        daemon._stop_soon()
        if leaves:
            assert not told.poll(0)
            client.close()
        assert told.poll(30_000)
        assert leaves or time.monotonic() - began >= 0.2
    finally:
        client.close()
        daemon._close()
