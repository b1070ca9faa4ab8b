"""Every flag of a release is somebody's, and none is taken in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.host.fds import FdSet
from runtime.runsc import donated_files, flag_table, flags, member_conf
from runtime.runsc.config import RunscConfig
from tests.fakes.generations import GENERATIONS

# What ``runsc flags`` names: all three releases, then those that only some have.
_ALWAYS = """
    allow-flag-override alsologtostderr buffer-pooling cgroupfs coverage-fd coverage-report
    cpu-num-from-quota dcache debug debug-command debug-log debug-log-fd debug-log-format
    enable-core-tags fdlimit file-access file-access-mounts fsgofer-host-uds fuse gso gvisor-gro
    host-fifo host-uds ignore-cgroups lisafs log log-fd log-format log-packets net-raw network
    num-network-channels oci-seccomp overlay overlay2 panic-log panic-log-fd panic-signal
    pcap-log platform platform_device_path pod-init-config profile profile-block profile-cpu
    profile-heap profile-mutex qdisc ref-leak-mode root rootless rx-checksum-offload
    software-gso strace strace-event strace-log-size strace-syscalls systemd-cgroup
    TESTONLY-test-name-env TESTONLY-unsafe-nonroot trace traceback tx-checksum-offload version
    vfs2 watchdog-action
"""
_UNTIL_2024 = "TESTONLY-allow-packet-endpoint-write"
_SINCE_2024 = """
    EXPERIMENTAL-xdp EXPERIMENTAL-xdp-need-wakeup TESTONLY-afs-syscall-panic
    TESTONLY-autosave-image-path TESTONLY-autosave-resume app-huge-pages debug-to-user-log
    directfs iouring metric-server net-disconnect-ok network-processors-per-channel nvproxy
    nvproxy-docker nvproxy-driver-version profiling-metrics profiling-metrics-log
    profiling-metrics-rate-us reproduce-nat reproduce-nftables tpuproxy
"""
_SINCE_2026 = """
    TESTONLY-nftables allow-connected-on-save allow-live-tcp-migration allow-packet-socket-write
    allow-rootfs-tar-annotation allow-suid character-device-policy control-rpc-stop-timeout
    final-metrics-log gofer-network-namespace gvisor-marker-file h help host-settings
    kvm-use-cpu-nums mount-cgroup-v2 nvproxy-allow-unsupported-driver
    nvproxy-allowed-driver-capabilities override-procs pause-external-networking
    profile-gc-interval qdisc-tbf-burst qdisc-tbf-rate rdmaproxy restore-spec-validation
    save-restore-netstack shared-root sidecar-release-enforcement-policy
    systrap-disable-fast-path systrap-disable-syscall-patching
"""
RELEASES = {
    2022: f"{_ALWAYS} {_UNTIL_2024} EXPERIMENTAL-afxdp",
    2024: f"{_ALWAYS} {_UNTIL_2024} {_SINCE_2024}",
    2026: f"{_ALWAYS} {_SINCE_2024} {_SINCE_2026}",
}
GROUPS = (
    flag_table.PASSED,
    flag_table.OURS,
    flag_table.FILES,
    flag_table.OBSOLETE,
    flag_table.RESERVED,
    frozenset(flag_table.REFUSED),
)


@pytest.mark.parametrize("year", RELEASES)
def test_every_flag_of_a_release_is_in_one_group(year: int) -> None:
    names = RELEASES[year].split()
    assert len(names) == {2022: 68, 2024: 88, 2026: 117}[year]
    for name in names:
        assert sum(name in group for group in GROUPS) == 1, name


def test_groups_name_nothing_twice() -> None:
    assert sum(map(len, GROUPS)) == len(flag_table.ALL)
    known = {name for text in RELEASES.values() for name in text.split()}
    # The last two are of releases between those, and after them.
    assert flag_table.ALL - known == {"afxdp", "sidecar-usage-policy"}


def generation(year: int, *more: str) -> object:
    found = GENERATIONS[year]
    return found.replace(
        global_flags={**dict.fromkeys(RELEASES[year].split(), ""), **found.global_flags}
    )


def check(year: int, **values: str) -> None:
    config = RunscConfig(root="/r", flags={n.replace("_", "-"): v for n, v in values.items()})
    flags.check_flags(config, generation(year))  # type: ignore[arg-type]


@pytest.mark.parametrize("year", RELEASES)
def test_every_flag_is_taken_or_refused_by_name(year: int) -> None:
    for name in RELEASES[year].split():
        values = {"profile": "true", "profiling-metrics": "x", name: "/x"}
        values = {each: value for each, value in values.items() if each in RELEASES[year].split()}
        config = RunscConfig(root="/r", flags=values)
        if name in flag_table.REFUSED:
            with pytest.raises(
                Unsupported, match=f"runsc flag '{name}' is not supported by the shim: "
            ):
                flags.check_flags(config, generation(year))  # type: ignore[arg-type]
        elif name in flag_table.RESERVED:
            with pytest.raises(InvalidRequest, match=f"flag '{name}' is set by the shim"):
                flags.check_flags(config, generation(year))  # type: ignore[arg-type]
        else:
            flags.check_flags(config, generation(year))  # type: ignore[arg-type]


def test_refused_flags_may_ask_for_what_is_done_anyway() -> None:
    for name in flag_table.REFUSED:
        assert not flag_table.why_refused(name, "", "")
        assert not flag_table.why_refused(name, "false", "")
        assert not flag_table.why_refused(name, "x", "x")
        assert flag_table.why_refused(name, "true", "false")
    check(2026, gofer_network_namespace="new", host_settings="ignore", EXPERIMENTAL_xdp="off")
    with pytest.raises(Unsupported, match="'gofer-network-namespace'"):
        check(2026, gofer_network_namespace="host")
    with pytest.raises(Unsupported, match="'host-settings'"):
        check(2026, host_settings="enforce")


def test_readme_lists_what_is_refused() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert not [name for name in flag_table.REFUSED if f"`{name}`" not in text]


def test_flags_of_newer_releases_are_told() -> None:
    config = RunscConfig(root="/r", flags={"zork": "1", "debug": "true", "trace": "/x"})
    assert flags.unknown_flags(config) == ("zork",)


# -- files -----------------------------------------------------------------------------------------

PROFILES = ("profile-block", "profile-cpu", "profile-heap", "profile-mutex", "trace")
BOOT = frozenset(f"{name}-fd" for name in (*PROFILES, "final-metrics-log", "profiling-metrics"))
GOFER = frozenset(f"{name}-fd" for name in PROFILES)


def opened(
    given: dict[str, str], command: str = "boot", taken: frozenset[str] = BOOT
) -> tuple[donated_files.Donated, dict[str, str]]:
    """What was donated, and where each descriptor leads to."""
    with FdSet() as fds:
        found = donated_files.open_files(given, command, "sb", "ct", taken, fds)
        everything = {**found.everywhere, **found.of_command}
        return found, {name: os.readlink(f"/proc/self/fd/{fd}") for name, fd in everything.items()}


def test_files_have_their_names_in_place_of_variables(tmp_path: Path) -> None:
    given = {
        "log": f"{tmp_path}/%ID%",
        "debug-log": f"{tmp_path}/d-%COMMAND%-%ID%-%CID%-%TEST%",
        "panic-log": f"{tmp_path}/%COMMAND%",
        "profile-heap": f"{tmp_path}/",
        "profile-cpu": f"{tmp_path}/%CID%.cpu",
        "trace": f"{tmp_path}/t",
        "final-metrics-log": f"{tmp_path}/f",
        "profiling-metrics-log": f"{tmp_path}/%COMMAND%",
    }
    found, paths = opened(given)
    assert {name: path.rpartition("/")[2] for name, path in paths.items()} == {
        "log-fd": "%ID%",
        "debug-log-fd": "d-boot-sb-ct-",
        "panic-log-fd": "panic",
        "profile-heap-fd": "runsc-profile.heap.pprof",
        "profile-cpu-fd": "ct.cpu",
        "trace-fd": "t",
        "final-metrics-log-fd": "f",
        "profiling-metrics-fd": "metrics",
    }
    assert set(found.everywhere) == {"log-fd", "debug-log-fd", "panic-log-fd"}
    assert found.at_end
    found, paths = opened(given, "gofer", GOFER)
    assert {name: path.rpartition("/")[2] for name, path in paths.items()} == {
        "log-fd": "%ID%",
        "debug-log-fd": "d-gofer-sb-ct-",
        "profile-heap-fd": "runsc-profile.heap.pprof.gofer.ct",
        "profile-cpu-fd": "ct.cpu.gofer",
        "trace-fd": "t.gofer.ct",
    }
    assert found.at_end


def test_logs_grow_and_profiles_are_new(tmp_path: Path) -> None:
    for name in ("l", "p"):
        (tmp_path / name).write_text("old")
    opened({"debug-log": f"{tmp_path}/l", "profile-cpu": f"{tmp_path}/p"})
    assert (tmp_path / "l").read_text() == "old"
    assert (tmp_path / "p").read_text() == ""
    assert not opened({"debug-log": f"{tmp_path}/l"})[0].at_end


def test_samples_to_the_standard_output() -> None:
    found, _ = opened({"profiling-metrics-log": "-"})
    assert found.samples_to_stdout and not found.of_command and not found.at_end
    assert not opened({"profiling-metrics-log": "-"}, "gofer", GOFER)[0].samples_to_stdout


def test_a_fifo_without_a_reader_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(Failed, match=f"open trace file {tmp_path}/f: no such device or address"):
        opened({"trace": f"{tmp_path}/f"})


def test_files_that_nothing_would_be_written_to() -> None:
    with pytest.raises(InvalidRequest, match="'profile-cpu' needs profile = true"):
        check(2024, profile_cpu="/x")
    check(2024, trace="/x")
    with pytest.raises(InvalidRequest, match="'profiling-metrics-log' needs profiling-metrics"):
        check(2024, profiling_metrics_log="/x")
    found = generation(2026)
    config = RunscConfig(root="/r", flags={"final-metrics-log": "/x"})
    flags.check_flags(config, found)  # type: ignore[arg-type]
    older = found.replace(boot_flags=found.boot_flags - {"final-metrics-log-fd"})  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="'final-metrics-log' is not supported by runsc"):
        flags.check_flags(config, older)


def test_the_log_for_a_pods_user() -> None:
    wanted, name = {"debug-to-user-log": "true"}, "io.kubernetes.cri.sandbox-log-directory"
    assert donated_files.user_log(wanted, {name: "/var/log/pods/x"}) == "/var/log/pods/x/gvisor.log"
    assert donated_files.user_log({}, {name: "/var/log/pods/x"}) == ""
    for found in ({}, {name: "x"}):
        with pytest.raises(Unsupported, match="'debug-to-user-log' needs the annotation io"):
            donated_files.user_log(wanted, found)


def test_what_a_member_is_told() -> None:
    given = {
        "character-device-policy": "passthrough",
        "mount-cgroup-v2": "true",
        "override-procs": "kallsyms",
        "fsgofer-host-uds": "true",
    }
    found = GENERATIONS[2026].replace(global_flags=dict.fromkeys(RELEASES[2026].split(), ""))
    settings = flags.read_settings(RunscConfig(root="/r", flags=given), found, None)
    conf = member_conf.of(settings, {"nvproxy-allowed-driver-capabilities": "utility"})
    assert (conf["CharacterDevicePolicy"], conf["MountCgroupV2"], conf["OverrideProcs"]) == (
        2,
        True,
        "kallsyms",
    )
    assert conf["FSGoferHostUDS"] and conf["NVProxyAllowedDriverCapabilities"] == "utility"
