"""Driving a shim binary directly, the way containerd does, without a containerd between."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.clients import api
from integration.harness.clients.ttrpc import Client, Lost, Refused, Silent
from integration.harness.clients.wire import Msg
from integration.harness.host.image import unpack_rootfs
from integration.harness.nodes.node import Node


class Started(Exception):
    """`start` failed; the text is what containerd would show."""


class Bundle:
    """A bundle of a node, its shim and a client: a context manager that takes all down again.

    The node's containerd takes the events, but knows nothing of the container.
    """

    def __init__(self, node: Node, container: str | None = None) -> None:
        self.node = node
        self.id = node.new_id() if container is None else node.known(container)
        self.path = node.daemon.folder / "bundles" / (self.id[:40] or "empty")
        self.rootfs = rootfs(node)
        self.client: Client | None = None
        self._log = -1

    def __enter__(self) -> Bundle:
        (self.path / "rootfs").mkdir(parents=True)
        os.mkfifo(self.path / "log", 0o700)
        self._log = os.open(self.path / "log", os.O_RDWR | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.client is not None:
                self._take_down(self.client)
        finally:
            self.node.excuse_reference("socket")
            os.close(self._log)
            shutil.rmtree(self.path, ignore_errors=True)

    def write(self, spec: Any) -> None:
        """config.json: a spec, or the bytes of the file."""
        raw = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        (self.path / "config.json").write_bytes(raw)

    def spec(self, *args: str) -> dict[str, Any]:
        return copy.deepcopy(self.node.api.spec(*args, container=self.id))

    def command(
        self, *action: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's binary with containerd's arguments."""
        daemon = self.node.daemon
        environment = {
            **daemon.environment(),
            "TTRPC_ADDRESS": f"{daemon.address}.ttrpc",
            "GRPC_ADDRESS": str(daemon.address),
            "NAMESPACE": daemon.namespace,
            "MAX_SHIM_VERSION": "2",
        }
        flags = ["-namespace", daemon.namespace, "-address", str(daemon.address)]
        flags += ["-publish-binary", str(daemon.bin / "containerd"), "-id", self.id]
        return subprocess.run(
            [peers.shim_path(self.node.runtime, daemon.version), *flags, *options, *action],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15,
        )

    def start(self) -> Client:
        """`start`, then a connection; Started when the binary reports a failure."""
        done = self.command("start")
        text = (done.stdout + done.stderr).decode()
        if done.returncode:
            raise Started(text)
        address = json.loads(text)["address"] if text.startswith("{") else text
        service = api.TASK_SERVICES[text.startswith("{") and json.loads(text)["version"] == 3]
        self.client = Client(Path(address.strip().removeprefix("unix://")), service)
        return self.client

    def create(self, *, timeout: float = 20, **values: Any) -> Msg:
        """Create, with the image's files as the root file system unless told otherwise."""
        mount = {"type": "bind", "source": str(self.rootfs), "options": ["rbind", "rw"]}
        values.setdefault("rootfs", [mount])
        assert self.client is not None
        return self.client.call("Create", timeout, id=self.id, bundle=str(self.path), **values)

    def delete_command(self) -> Msg:
        """`delete`, as after a lost connection; the reply that it prints."""
        done = self.command("delete", options=("-bundle", str(self.path)))
        assert done.returncode == 0, done
        return api.Deleted.decode(done.stdout)

    def _take_down(self, client: Client) -> None:
        for method, values in (
            ("Resume", {}),
            ("Kill", {"signal": 9, "all": True}),
            ("Wait", {}),
            ("Delete", {}),
            ("Shutdown", {}),
        ):
            try:
                client.call(method, 10, id=self.id, **values)
            except (Refused, Lost, Silent):
                continue
        client.close()
        if self.node.gvisor:  # the reference's `delete` fails where there is nothing to delete
            self.delete_command()
        else:
            self.command("delete", options=("-bundle", str(self.path)))


def rootfs(node: Node) -> Path:
    """The image's files, unpacked once for each node."""
    folder = node.daemon.folder / "files"
    if not folder.exists():
        folder.mkdir()
        unpack_rootfs(folder)
    return folder


def outcome(
    client: Client, method: str, timeout: float = 10, **values: Mapping[str, Any] | Any
) -> int:
    """The status code of a call; 0 when it succeeds."""
    try:
        client.call(method, timeout, **values)
    except Refused as refused:
        return refused.code
    return 0
