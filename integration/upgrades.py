"""Asks a shim to become another version, as `gvctl upgrade --running` does."""

from __future__ import annotations

from pathlib import Path

from integration.harness.base.waiting import until
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from shim.observe.debug_client import ask

_PATIENCE = 30.0


def address(daemon: Containerd, container: str) -> str:
    """Of a container's shim."""
    return f"unix://{footprint.socket_of(daemon, container)}"


def info(shim: str) -> dict[str, object]:
    return dict(ask(shim, "Info", {}, _PATIENCE))


def upgrades(shim: str) -> dict[str, object]:
    """What a shim says of its upgrades."""
    found = info(shim)["upgrade"]
    assert isinstance(found, dict)
    return found


def upgrade(shim: str, program: Path | str = "") -> str:
    """Have a shim become another version; why that was refused, or nothing."""
    number = ask(shim, "Upgrade", {"program": str(program)}, _PATIENCE)["number"]
    last: dict[str, object] = {}

    def over() -> bool:
        found = upgrades(shim)
        last.update(found)
        return int(str(found["done"])) >= number

    until(over, 90, "the upgrade is over")
    told = last["last"]
    assert isinstance(told, dict)
    return str(told["refused"])
