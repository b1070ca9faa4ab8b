"""What doctor makes of hosts of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.base.errors import Failed
from runtime.base.version import VERSION
from runtime.cli import doctor
from runtime.cli.doctor import FAILURE, OK, WARNING, Facts, examine
from runtime.cli.insight import shims

GOOD: dict[str, Any] = {
    "kernel": "6.1.0-13-amd64",
    "capabilities": (1 << 41) - 1,
    "runsc": "/bin/runsc",
    "runsc_version": "release-20240729.0",
    "default_platform": "systrap",
    "shim": "/bin/shim",
    "containerd": "/bin/containerd",
    "containerd_release": "1.7.24",
    "cgroup_mode": "v2",
    "cgroup_controllers": ("cpu", "memory", "pids"),
    "open_files": 1 << 20,
}


def test_a_host_where_all_is_well() -> None:
    findings = examine(Facts(**GOOD))
    assert {f.level for f in findings} == {OK}
    assert not any(f.advice for f in findings)


@pytest.mark.parametrize(
    ("changes", "check", "level", "words"),
    [
        ({"system": "Darwin"}, "kernel", FAILURE, "Linux only"),
        ({"machine": "riscv64"}, "kernel", FAILURE, "x86_64 and aarch64"),
        ({"kernel": "4.19.0"}, "kernel", FAILURE, "5.4 or later"),
        ({"kernel": "5.4+"}, "kernel", OK, ""),
        ({"uid": 1000}, "user", FAILURE, "run it as root"),
        ({"capabilities": 0xA80425FB}, "capabilities", FAILURE, "these capabilities"),
        ({"runsc": ""}, "runsc", FAILURE, "install runsc"),
        ({"runsc_fault": "not usable"}, "runsc", FAILURE, "20221219"),
        ({"configured_platform": "kvm"}, "platform", FAILURE, "systrap"),
        ({"configured_platform": "kvm", "kvm": False}, "platform", FAILURE, "systrap"),
        ({"configured_platform": "kvm", "kvm": True}, "platform", OK, ""),
        ({"default_platform": "ptrace"}, "platform", WARNING, "systrap is faster"),
        ({"ptrace_scope": 3}, "platform", FAILURE, "ptrace_scope"),
        ({"shim": ""}, "shim", WARNING, "/usr/local/bin"),
        ({"containerd": ""}, "containerd", WARNING, "none is needed"),
        ({"containerd_release": "1.5.9"}, "containerd", FAILURE, "1.6 or later"),
        ({"containerd_release": "2.1.9"}, "containerd", OK, ""),
        ({"options_fault": "/x: y"}, "options", FAILURE, "correct the file"),
        ({"cgroup_mode": ""}, "cgroups", FAILURE, "mount"),
        ({"cgroup_fault": "read-only"}, "cgroups", FAILURE, "writable"),
        ({"cgroup_controllers": ("cpu",)}, "cgroups", WARNING, "enable"),
        ({"systemd": True}, "cgroup driver", OK, ""),
        ({"seccomp": False}, "seccomp", FAILURE, "CONFIG_SECCOMP_FILTER"),
        ({"user_namespaces": 0}, "user namespaces", WARNING, "max_user_namespaces"),
        ({"open_files": 1024}, "open files", WARNING, "LimitNOFILE"),
        ({"port_forward_fault": "x"}, "port forwarding", WARNING, "Linux 5.9"),
    ],
)
def test_what_is_wrong_and_what_to_do(
    changes: dict[str, Any], check: str, level: str, words: str
) -> None:
    findings = {f.check: f for f in examine(Facts(**{**GOOD, **changes}))}
    found = findings.pop(check)
    assert found.level == level and words in found.advice
    findings.pop("oom score")  # which is a matter of capabilities, too
    assert all(f.level == OK for f in findings.values())


def told(**values: str) -> shims.Told:
    return shims.Told(**{"sandbox": "p", "namespace": "k8s.io", **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sandboxes", "text", "words"),
    [
        ([told(version=VERSION)], f"1 by shims of {VERSION}", ""),
        ([told(version=VERSION, package=shims.own_package())] * 2, f"2 by shims of {VERSION}", ""),
        (
            [told(version=VERSION), told(version="0.0.9")],
            f"1 by shims of 0.0.9, 1 by shims of {VERSION}",
            "upgrade --running",
        ),
        ([told(version=VERSION, package="/old")], f"1 by shims of {VERSION}", "upgrade --running"),
        ([told(version="0.10.0")], "1 by shims of 0.10.0", "newest shim"),
        ([told(fault="it hangs")], "1 by shims of unknown version", "gvctl debug"),
    ],
)
def test_versions_of_the_shims_that_run(sandboxes: list[shims.Told], text: str, words: str) -> None:
    [found] = [
        f for f in examine(Facts(**GOOD, sandboxes=tuple(sandboxes))) if f.check == "sandboxes"
    ]
    assert found.text == text and words in found.advice
    assert found.level == (WARNING if words else OK)


def test_what_a_shim_says_is_bounded_and_checked() -> None:
    shim = shims.Shim(sandbox="p", namespace="n", address="unix:///a")

    def says(reply: Any) -> shims.Told:
        def ask(address: str, method: str, request: object, timeout: float) -> Any:
            assert (address, method) == ("unix:///a", "Info")
            if isinstance(reply, Exception):
                raise reply
            return reply

        return shims.tell(ask, shim)

    assert says({"version": "1.2", "package": "/x"}).replace(version="") == shims.Told(
        sandbox="p", namespace="n", package="/x"
    )
    for reply in ({}, {"version": 3}, {"version": "none"}, {"version": ["1"]}):
        found = says(reply)
        assert (found.version, found.age) == ("", shims.UNKNOWN) and found.fault
    assert says(Failed("it hangs")).fault == "it hangs"
    assert len(says({"version": "1." * 1000, "package": "/" * 10000}).version) <= 40
    assert [shims.numbers(v) for v in ("0.9.0", "0.10.0-rc1")] == [(0, 9, 0), (0, 10, 0, 1)]


def test_without_the_capability_to_lower_scores() -> None:
    findings = {f.check: f for f in examine(Facts(**{**GOOD, "capabilities": (1 << 24) - 1}))}
    found = findings.pop("oom score")
    assert found.level == WARNING and "CAP_SYS_RESOURCE" in found.advice
    assert all(f.level == OK for f in findings.values())


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("containerd github.com/containerd/containerd v1.7.24~ds1 1.7.24~ds1-6", "1.7.24"),
        ("containerd github.com/containerd/containerd/v2 2.1.9 abc", "2.1.9"),
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", "1.6.20"),
        ("containerd x v2.0.0-rc.1 abc", "2.0.0"),
        ("no version", ""),
        ("", ""),
    ],
)
def test_versions_of_containerd(text: str, release: str) -> None:
    assert doctor.containerd_version(text) == release


def test_this_host_is_examined_whatever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from runtime.cli.main import main

    status = main(["--runsc", "/no/such/runsc", "--config", "/dev/null", "doctor", "-f", "json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 1 and found["ok"] is False
    by_name = {each["check"]: each for each in found["checks"]}
    assert by_name["runsc"]["text"] == "/no/such/runsc: no such file or directory"
    main(["--config", "/dev/null", "doctor"])
    assert "What to do:" in capsys.readouterr().out
