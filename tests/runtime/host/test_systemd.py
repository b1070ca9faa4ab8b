"""Scopes: what systemd is asked, and what is made of its answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.cgroups import resources as cgroup_resources
from runtime.cgroups import settings
from runtime.cgroups.systemd import limit_properties
from runtime.host import dbus
from runtime.host.dbus import Bus
from runtime.host.systemd import Manager, UnitExists, scope_properties
from tests.fakes.systemd import FakeSystemd

UNIT = "cri-containerd-c.scope"
PROPERTIES = scope_properties(UNIT, "kubepods-podX.slice", 42)


@pytest.fixture(params=[False, True], ids=["bus", "private"])
def systemd(request: pytest.FixtureRequest) -> Iterator[FakeSystemd]:
    systemd = FakeSystemd(private=request.param)
    yield systemd
    systemd.close()


def manager(systemd: FakeSystemd, seconds: float = 5) -> Manager:
    import _socket

    deadline = time.monotonic() + seconds
    bus = Bus(_socket.socket(fileno=os.dup(systemd.ours.fileno())), deadline)
    return Manager(bus, deadline, private=systemd.private)


def test_the_life_of_a_scope(systemd: FakeSystemd) -> None:
    with manager(systemd) as ours:
        ours.start_scope(UNIT, PROPERTIES)
        assert systemd.units[UNIT]["PIDs"] == ("au", [42])
        assert systemd.units[UNIT]["Slice"] == ("s", "kubepods-podX.slice")
        assert systemd.units[UNIT]["Delegate"] == ("b", True)
        ours.set_properties(UNIT, [("MemoryMax", ("t", 5))])
        assert systemd.units[UNIT]["MemoryMax"] == ("t", 5)
        ours.kill(UNIT, 9)
        ours.stop(UNIT)
        assert systemd.units == {}
        ours.stop(UNIT)  # gone: no error
        ours.kill(UNIT, 9)
    greeting = [] if systemd.private else ["Hello", "AddMatch", "Subscribe", "GetNameOwner"]
    assert systemd.members()[: len(greeting) + 1] == [*greeting, "StartTransientUnit"]


def test_a_job_that_ends_before_the_reply_is_seen(systemd: FakeSystemd) -> None:
    systemd.early_signals = True
    with manager(systemd) as ours:
        ours.start_scope(UNIT, PROPERTIES)
        ours.stop(UNIT)


def test_signals_that_somebody_else_sends(
    systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any local user may send us some by our name on the bus, and as many as they like."""
    if systemd.private:
        pytest.skip("on its own socket there is nobody but systemd")
    monkeypatch.setattr(dbus, "MAX_SIGNALS", 3)
    systemd.forged = 9
    with manager(systemd) as ours:
        ours.start_scope(UNIT, PROPERTIES)
        ours.stop(UNIT)


def test_a_job_that_fails(systemd: FakeSystemd) -> None:
    systemd.result = "failed"
    with manager(systemd) as ours, pytest.raises(Failed, match=f"start {UNIT}: .*'failed'"):
        ours.start_scope(UNIT, PROPERTIES)
    assert systemd.members()[-1] == "ResetFailedUnit"


def test_a_name_that_is_taken(systemd: FakeSystemd) -> None:
    systemd.units[UNIT] = {}
    with manager(systemd) as ours, pytest.raises(UnitExists):
        ours.start_scope(UNIT, PROPERTIES)


@pytest.mark.parametrize(
    ("member", "call"),
    [
        ("StartTransientUnit", lambda m: m.start_scope(UNIT, PROPERTIES)),
        ("SetUnitProperties", lambda m: m.set_properties(UNIT, [])),
        ("StopUnit", lambda m: m.stop(UNIT)),
        ("KillUnit", lambda m: m.kill(UNIT, 9)),
    ],
)
def test_refusals_name_the_unit(systemd: FakeSystemd, member: str, call: Any) -> None:
    systemd.refuse[member] = "org.freedesktop.DBus.Error.AccessDenied"
    with manager(systemd) as ours, pytest.raises(Failed, match=f"{UNIT}: .*AccessDenied"):
        call(ours)


def test_a_systemd_that_never_finishes_is_given_up(systemd: FakeSystemd) -> None:
    systemd.result = "nothing"
    systemd._job = lambda unit: ("o", ("/job/1",), b"")  # type: ignore[method-assign]
    with manager(systemd, 0.1) as ours, pytest.raises(DeadlineExceeded):
        ours.start_scope(UNIT, PROPERTIES)


def properties(resources: dict[str, Any]) -> dict[str, Any]:
    parsed = cgroup_resources.parse(resources)
    return dict(limit_properties(settings.v2_settings(parsed, lambda _: None)))


MAX = (1 << 64) - 1


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {}),
        ({"memory": {"limit": 5}}, {"MemoryMax": ("t", 5)}),
        ({"memory": {"limit": -1}}, {"MemoryMax": ("t", MAX)}),
        (
            {"memory": {"limit": 5, "swap": 8, "reservation": 2}},
            {"MemoryMax": ("t", 5), "MemorySwapMax": ("t", 3), "MemoryLow": ("t", 2)},
        ),
        ({"pids": {"limit": 7}}, {"TasksMax": ("t", 128 + 4 * 7)}),
        ({"cpu": {"shares": 1024}}, {"CPUWeight": ("t", 39)}),
        (
            {"cpu": {"quota": 50000, "period": 100000}},
            {"CPUQuotaPerSecUSec": ("t", 500000), "CPUQuotaPeriodUSec": ("t", 100000)},
        ),
        # Rounded up to a whole percent.
        (
            {"cpu": {"quota": 12345, "period": 100000}},
            {"CPUQuotaPerSecUSec": ("t", 130000), "CPUQuotaPeriodUSec": ("t", 100000)},
        ),
        (
            {"cpu": {"quota": -1, "period": 100000}},
            {"CPUQuotaPerSecUSec": ("t", MAX), "CPUQuotaPeriodUSec": ("t", 100000)},
        ),
        (
            {"cpu": {"cpus": "0-2,9", "mems": "0"}},
            {"AllowedCPUs": ("ay", [7, 2]), "AllowedMemoryNodes": ("ay", [1])},
        ),
        ({"unified": {"memory.high": "9", "memory.min": "1"}}, None),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 100}]}},
            {"IOReadBandwidthMax": ("a(st)", [("/dev/block/8:0", 100)])},
        ),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, {}),
    ],
)
def test_limits_in_systemds_terms(
    resources: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    if expected is None:
        expected = {"MemoryHigh": ("t", 9), "MemoryMin": ("t", 1)}
    assert properties(resources) == expected


def test_neither_bus_nor_socket_names_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus,guid=1")
    with pytest.raises(Failed) as caught:
        Manager.connect(1.0, private=f"{tmp_path}/private")
    assert f"{tmp_path}/bus: No such file" in str(caught.value)
    assert f"{tmp_path}/private: No such file" in str(caught.value)
