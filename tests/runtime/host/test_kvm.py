"""A KVM device that doesn't work is found out before a sentry gets it."""

from __future__ import annotations

import os

import pytest

from runtime.base.errors import Unsupported
from runtime.host import kvm
from runtime.host.fds import FdSet
from runtime.runsc.config import RunscConfig
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.sentry import open_device
from tests.fakes.generations import GENERATIONS


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("/dev/null", "make a virtual machine with /dev/null: inappropriate ioctl for device"),
        ("/dev/no-kvm", "open /dev/no-kvm: no such file or directory"),
    ],
)
def test_a_device_that_is_no_kvm(device: str, words: str) -> None:
    flags = {"platform": "kvm", "platform_device_path": device}
    config = RunscConfig(root="/nonexistent", flags=flags)
    settings = DirectDriver(GENERATIONS[2024]).settings(config, None)
    with FdSet() as fds, pytest.raises(Unsupported, match=words):
        open_device(settings, fds)


def test_nothing_stays_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as device, pytest.raises(OSError):
        kvm.check(device.fileno())
    assert sorted(os.listdir("/proc/self/fd")) == before
