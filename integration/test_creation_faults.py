"""Creations that fail for a reason of the machine's: a clear word, and nothing left."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from integration.harness.base import linux, peers
from integration.harness.base.waiting import until
from integration.harness.clients.api import Code
from integration.harness.clients.ttrpc import Lost, Refused
from integration.harness.clients.wire import Schema
from integration.harness.host import footprint
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import Bundle, outcome

pytestmark = pytest.mark.gvisor

_Options = Schema("type_url:1 config_path:2")
#: What runsc is replaced by: it is itself but for one of its commands, whose help it gives.
_WRAPPER = """\
#!/bin/sh
[ "$1" = help ] && exec {runsc} "$@"
for word; do [ "$word" = {command} ] && {action}; done
exec {runsc} "$@"
"""


class Place:
    """A bundle, the shim's options, and a directory of its own for the state."""

    def __init__(self, node: Node, bundle: Bundle) -> None:
        self.node, self.bundle = node, bundle
        self.folder = node.daemon.folder / "creation"
        self.root = self.folder / "state"
        self.state = self.root / node.daemon.namespace
        self.state.mkdir(parents=True)
        self.spec: dict[str, Any] = bundle.spec("sleep", "1000")
        self.binary = str(peers.runsc(node.daemon.generation))

    def wrap(self, command: str, action: str) -> None:
        """Have runsc do something else in place of a command."""
        wrapper = self.folder / "wrapped"
        text = _WRAPPER.format(command=command, action=action, runsc=self.binary)
        wrapper.write_text(text)
        wrapper.chmod(0o755)
        self.binary = str(wrapper)

    def options(self) -> dict[str, object]:
        self.bundle.write(self.spec)
        file = self.folder / "options.toml"
        file.write_text(f'root = "{self.root}"\nbinary_name = "{self.binary}"\n')
        value = _Options.encode(type_url="io.containerd.gvisor.v2.options", config_path=str(file))
        return {"type_url": "runtimeoptions.v1.Options", "value": value}


@pytest.fixture
def place(node: Node) -> Iterator[Place]:
    with Bundle(node) as bundle:
        found = Place(node, bundle)
        try:
            yield found
            assert not [each.name for each in found.state.iterdir()]
        finally:
            _clear(found)
            linux.unmount(str(found.state))
            for path in sorted(found.folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            found.folder.rmdir()


def _network_is_gone(place: Place) -> None:
    kinds = place.spec["linux"]["namespaces"]
    next(each for each in kinds if each["type"] == "network")["path"] = "/run/no-such-netns"


def _network_is_no_namespace(place: Place) -> None:
    path = place.folder / "a-file"
    path.touch()
    kinds = place.spec["linux"]["namespaces"]
    next(each for each in kinds if each["type"] == "network")["path"] = str(path)


def _cgroup_is_refused(place: Place) -> None:
    place.spec["linux"]["resources"] = {"cpu": {"cpus": "100000"}}


def _source_is_missing(place: Place) -> None:
    mount = {"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["rbind"]}
    place.spec["mounts"].append(mount)


def _binary_is_not_executable(place: Place) -> None:
    path = place.folder / "not-executable"
    path.write_text("")
    place.binary = str(path)


def _state_is_full(place: Place) -> None:
    linux.mount("tmpfs", str(place.state), "tmpfs", data="size=4k,mode=0711")
    with contextlib.suppress(OSError):
        (place.state / "full").write_bytes(bytes(4096))
    place.state.joinpath("full").rename(place.state / ".full")


def _socket_is_taken(place: Place) -> None:
    taken = socket.socket(socket.AF_UNIX)
    # Below a directory's descriptor, as the whole path may be too long.
    directory = os.open(place.state, os.O_PATH)
    taken.bind(f"/proc/self/fd/{directory}/runsc-{place.bundle.id}.sock")
    os.close(directory)
    taken.listen(1)
    place.taken = taken  # type: ignore[attr-defined]  # it lives as long as the test


#: What is wrong, and a word of the error.
_CASES: dict[str, tuple[Callable[[Place], None], str]] = {
    "network namespace is gone": (_network_is_gone, "/run/no-such-netns"),
    "network namespace is a file": (_network_is_no_namespace, "network namespace"),
    "cgroup refuses a limit": (_cgroup_is_refused, "cpuset.cpus"),
    "bind source is missing": (_source_is_missing, "/no/such"),
    "binary is not executable": (_binary_is_not_executable, "not-executable"),
    "no space for the state": (_state_is_full, "no space left"),
    "control socket is taken": (_socket_is_taken, "already exists"),
    "sentry ends at once": (lambda place: place.wrap("boot", "exit 7"), "exit status 7"),
    "gofer ends at once": (lambda place: place.wrap("gofer", "exit 9"), "exit status 9"),
}


@pytest.mark.parametrize("case", _CASES)
def test_creation_fails(place: Place, case: str) -> None:
    spoil, words = _CASES[case]
    client = place.bundle.start()
    pid = int(client.call("Connect", id=place.bundle.id).shim_pid)
    before = footprint.size(pid)[0]
    spoil(place)
    with pytest.raises(Refused) as refused:
        place.bundle.create(options=place.options())
    assert words in refused.value.message
    assert "Traceback" not in refused.value.message
    assert outcome(client, "Delete", id=place.bundle.id) == Code.NOT_FOUND
    assert footprint.descendants(pid) == []
    # One is that of the log, which may be opened late.
    assert footprint.size(pid)[0] <= before + 1
    assert os.listdir(place.bundle.path / "rootfs") == []
    _clear(place)
    with contextlib.suppress(Lost):
        client.call("Shutdown", id=place.bundle.id)
    until(lambda: not footprint.alive(pid), 5, "the shim has ended")


def _clear(place: Place) -> None:
    """Take away what the test itself has put in the way."""
    taken = getattr(place, "taken", None)
    if taken is not None:
        taken.close()
        (place.state / f"runsc-{place.bundle.id}.sock").unlink(missing_ok=True)
    (place.state / ".full").unlink(missing_ok=True)


def test_creation_that_hangs_is_given_up(place: Place) -> None:
    """The sentry is never ready; whoever deletes the container doesn't wait for that to be seen."""
    client = place.bundle.start()
    pid = int(client.call("Connect", id=place.bundle.id).shim_pid)
    place.wrap("boot", "exec sleep 1000")
    mount = {"type": "bind", "source": str(place.bundle.rootfs), "options": ["rbind", "rw"]}
    values = {"bundle": str(place.bundle.path), "rootfs": [mount], "options": place.options()}
    create = client.call_later("Create", 60, id=place.bundle.id, **values)
    until(lambda: _asleep(pid), 10, "the sentry's replacement sleeps")
    began = time.monotonic()
    assert outcome(client, "Delete", id=place.bundle.id) == Code.NOT_FOUND
    with pytest.raises(Refused, match="deleted while it was being created"):
        create()
    assert time.monotonic() - began < 5
    assert footprint.descendants(pid) == []
    client.call("Shutdown", id=place.bundle.id)
    until(lambda: not footprint.alive(pid), 5, "the shim has ended")


def _asleep(shim: int) -> bool:
    return any(footprint.name_of(each) == "sleep" for each in footprint.descendants(shim))
