"""GPUs and TPUs: who asks for one, and what is said where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.bundle.spec import Spec, parse_spec
from runtime.runsc.config import RunscConfig
from runtime.runsc.flags import Settings, read_settings
from runtime.sandbox import accelerators
from tests.fakes.generations import GENERATIONS

GPU = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
TPU = ("/dev/accel0",)
NVPROXY, TPUPROXY = {"nvproxy": "true"}, {"tpuproxy": "true"}


def make_spec(*devices: str, env: tuple[str, ...] = (), **more: Any) -> Spec:
    listed = [{"type": "c", "path": path, "major": 195, "minor": 1} for path in devices]
    value = {
        "process": {"args": ["true"], "env": list(env)},
        "root": {"path": "/x"},
        "linux": {"devices": listed},
        **more,
    }
    return parse_spec(json.dumps(value).encode(), "/bundle")


def settings(year: int = 2024, **flags: str) -> Settings:
    given = {name.replace("_", "-"): value for name, value in flags.items()}
    return read_settings(RunscConfig(root="/r", flags=given), GENERATIONS[year], None)


def prepare(
    spec: Spec, year: int = 2024, host: Settings | None = None, **flags: str
) -> accelerators.Granted:
    return accelerators.prepare(spec, flags, GENERATIONS[year], host)


@pytest.mark.parametrize("year", [2024, 2026])
@pytest.mark.parametrize(
    ("spec", "flags", "added"),
    [
        (make_spec("/dev/fuse"), {}, {}),
        (make_spec("/dev/nvidia0"), {}, {}),
        (make_spec("/dev/vfio/vfio"), {}, {}),
        (make_spec(*GPU), {}, NVPROXY),
        (make_spec(*TPU), {}, TPUPROXY),
        (make_spec("/dev/vfio/3"), {}, TPUPROXY),
        (make_spec(*GPU, *TPU), {}, {**NVPROXY, **TPUPROXY}),
        (make_spec(), NVPROXY, NVPROXY),
        (make_spec(annotations={"dev.gvisor.internal.nvproxy": "true"}), {}, NVPROXY),
        (make_spec(annotations={"dev.gvisor.internal.nvproxy": "false"}), {}, {}),
        (make_spec(annotations={"dev.gvisor.internal.tpuproxy": "1"}), {}, TPUPROXY),
    ],
)
def test_who_asks(year: int, spec: Spec, flags: dict[str, str], added: dict[str, str]) -> None:
    found = prepare(spec, year, **flags)
    assert (found.flags, found.spec, found.notes) == (added, spec, ())


def test_only_devices_need_a_connection_for_them() -> None:
    assert accelerators.needs_device_gofer(make_spec(*GPU), settings(nvproxy="true"))
    assert accelerators.needs_device_gofer(make_spec(*TPU), settings(tpuproxy="true"))
    assert not accelerators.needs_device_gofer(make_spec(), settings(nvproxy="true"))
    assert not accelerators.needs_device_gofer(make_spec(*TPU), settings(nvproxy="true"))


def test_all_of_the_hosts_devices_are_no_request() -> None:
    privileged = make_spec("/dev/kmsg", *GPU, "/dev/vfio/3", "/dev/fuse")
    found = prepare(privileged)
    assert not found.flags and len(found.notes) == 2
    left = [device["path"] for device in found.spec.raw["linux"]["devices"]]
    assert left == ["/dev/kmsg", "/dev/fuse"]
    asked = prepare(make_spec("/dev/kmsg", *GPU), nvproxy="true")
    assert asked.flags == NVPROXY and not asked.notes


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Unsupported, match=r"runsc 0.0~2022 supports no GPUs"):
        prepare(make_spec(*GPU), 2022)
    with pytest.raises(Unsupported, match=r"runsc 0.0~2022 supports no TPUs"):
        prepare(make_spec(*TPU), 2022)
    with pytest.raises(
        Unsupported, match=r"a GPU \(/dev/nvidiactl\), and runsc_config sets nvproxy = f"
    ):
        prepare(make_spec(*GPU), nvproxy="false")
    assert prepare(make_spec(*GPU), host=settings(nvproxy="true")).flags == NVPROXY
    with pytest.raises(
        Unsupported, match=r"sandbox was made without: annotate the pod dev.gvisor.int"
    ):
        prepare(make_spec(*GPU), host=settings())


def test_nvidias_legacy_hook() -> None:
    hooks = {"prestart": [{"path": "/usr/bin/nvidia-container-runtime-hook"}]}
    asks = ("NVIDIA_VISIBLE_DEVICES=all",)
    with pytest.raises(Unsupported, match="nvidia-container-runtime-hook is not supported"):
        prepare(make_spec(env=asks, hooks=hooks))
    prepare(make_spec(*GPU, env=asks, hooks=hooks))
    prepare(make_spec(env=asks))
    for text in ("", "void", "none"):
        prepare(make_spec(env=(f"NVIDIA_VISIBLE_DEVICES={text}",), hooks=hooks))


# -- the driver ------------------------------------------------------------------------------------

CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54  Release Build  (a@b)\n"
KNOWN = ("535.129.03", "535.161.07", "550.54.00", "620.06.00")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (CLOSED, "535.161.07"),
        (OPEN, "550.54"),
        ("", ""),
        ("NVRM version: none of them 1.x.2", ""),
        ("GCC version: 1.2.3", ""),
        ("\0" * 100, ""),
    ],
)
def test_what_the_driver_says_of_its_version(text: str, version: str) -> None:
    assert accelerators.parse_version(text) == version


def version(text: str | None, folder: Path, known: tuple[str, ...] = KNOWN, **flags: str) -> str:
    file = folder / "version"
    if text is not None:
        file.write_text(text)
    found = settings(2026, nvproxy="true", **flags)
    return accelerators.driver_version(found, GENERATIONS[2026], lambda: known, str(file))


def test_version_of_the_driver(tmp_path: Path) -> None:
    assert version(CLOSED, tmp_path) == "535.161.07"
    assert version(OPEN, tmp_path) == "550.54.00", "as the release has it"
    assert version(None, tmp_path, nvproxy_driver_version="latest") == "620.06.00"
    assert version(None, tmp_path, nvproxy_driver_version="535.129.3") == "535.129.03"
    other = OPEN.replace("550.54", "999.1")
    assert version(other, tmp_path, nvproxy_allow_unsupported_driver="true") == "999.1"
    assert accelerators.driver_version(settings(), GENERATIONS[2024], lambda: (), "/no") == ""


def test_driver_that_is_missing_or_not_supported(tmp_path: Path) -> None:
    def fails(why: str, text: str | None, kind: type[Exception] = Unsupported, **more: Any) -> None:
        with pytest.raises(kind, match=why):
            version(text, tmp_path, **more)

    fails("no NVIDIA driver: there is no .*/version; load it", None)
    fails("version: is a directory|tells no version", "")
    fails(
        "driver 535.1.1 is none that runsc 0.0~2026 supports: 535.129.03, 535.161.07 and 2 others",
        CLOSED.replace("535.161.07", "535.1.1"),
    )
    fails(
        "supports: 535.129.03, 535.161.07, 550.54.00, 620.06.00$", OPEN.replace("550.54", "999.1")
    )
    fails("names no NVIDIA driver", CLOSED, known=())
    fails(
        "nvproxy-driver-version 'new' is no version",
        CLOSED,
        InvalidRequest,
        nvproxy_driver_version="new",
    )
