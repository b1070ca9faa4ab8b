from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.bundle.capabilities import SETPCAP, SYS_ADMIN, SYS_CHROOT, SYS_PTRACE
from runtime.bundle.process_spec import ProcessSpec
from runtime.bundle.spec import Spec, parse_spec
from runtime.runsc import driver as d
from runtime.runsc.config import RunscConfig
from runtime.runsc.donated_files import Donated
from runtime.runsc.driver import BootCommand, Credentials, DirectDriver, GoferCommand, MountConf
from runtime.runsc.flags import Settings
from tests.fakes.generations import GENERATIONS

NAMESPACES = {
    "mnt": d.CLONE_NEWNS,
    "uts": d.CLONE_NEWUTS,
    "ipc": d.CLONE_NEWIPC,
    "pid": d.CLONE_NEWPID,
    "net": d.CLONE_NEWNET,
    "user": d.CLONE_NEWUSER,
}


def make_spec(*namespaces: str, **paths: str) -> Spec:
    kinds = [{"type": kind} for kind in namespaces]
    kinds += [{"type": kind, "path": path} for kind, path in paths.items()]
    mapping = [{"containerID": 0, "hostID": 5, "size": 9}]
    linux = {"namespaces": kinds, "uidMappings": mapping, "gidMappings": mapping}
    value = {"process": {"args": ["x"]}, "root": {"path": "/x"}, "linux": linux}
    return parse_spec(json.dumps(value).encode(), "/b")


def make(year: int, **flags: str) -> tuple[DirectDriver, Settings]:
    driver = DirectDriver(GENERATIONS[year])
    flags = {name.replace("_", "-"): value for name, value in flags.items()}
    return driver, driver.settings(RunscConfig(root="/r", flags=flags), None)


def names(mask: int) -> set[str]:
    assert not mask & ~sum(NAMESPACES.values())
    return {name for name, bit in NAMESPACES.items() if mask & bit}


NOBODY = Credentials(user_namespace="nobody", uid=65534, gid=65534)
ROOT = Credentials(apply_caps=True)
IDENTITY = Credentials(user_namespace="identity", uid=0, gid=0, apply_caps=True)
OWN = Credentials(user_namespace="spec", uid=0, gid=0, apply_caps=True)


@pytest.mark.parametrize(
    ("year", "flags", "namespaces", "expected"),
    [
        (2022, {}, (), NOBODY.replace(ambient=SYS_ADMIN | SYS_CHROOT)),
        (2022, {}, ("user",), NOBODY.replace(ambient=SYS_ADMIN | SYS_CHROOT)),
        (2022, {"network": "host"}, (), ROOT),
        (2022, {"network": "host"}, ("user",), OWN),
        (2024, {}, (), IDENTITY),
        (2024, {}, ("user",), OWN),
        (2024, {"network": "host"}, (), ROOT),
        (2024, {"directfs": "false"}, (), NOBODY.replace(ambient=SYS_ADMIN | SYS_CHROOT | SETPCAP)),
        (2026, {}, (), IDENTITY),
        (
            2026,
            {"directfs": "false"},
            (),
            NOBODY.replace(ambient=SYS_ADMIN | SYS_CHROOT | SETPCAP | SYS_PTRACE),
        ),
        (
            2026,
            {"directfs": "false", "platform": "kvm"},
            (),
            NOBODY.replace(ambient=SYS_ADMIN | SYS_CHROOT | SETPCAP),
        ),
    ],
)
def test_sandbox_credentials(
    year: int, flags: dict[str, str], namespaces: tuple[str, ...], expected: Credentials
) -> None:
    driver, settings = make(year, **flags)
    found = driver.sandbox_credentials(settings, make_spec(*namespaces))
    assert found == expected
    assert found.owner == ((65534, 65534) if expected.user_namespace == "nobody" else (0, 0))


@pytest.mark.parametrize(
    ("year", "flags", "namespaces", "kind"),
    [
        (2022, {}, (), ""),
        (2022, {}, ("user",), "spec"),
        (2024, {}, (), "identity"),
        (2024, {}, ("user",), "spec"),
        (2024, {"directfs": "false"}, (), ""),
        (2024, {"network": "host"}, (), ""),
    ],
)
def test_gofer_credentials(
    year: int, flags: dict[str, str], namespaces: tuple[str, ...], kind: str
) -> None:
    driver, settings = make(year, **flags)
    found = driver.gofer_credentials(settings, make_spec(*namespaces))
    root = 0 if kind else None
    assert found == Credentials(user_namespace=kind, uid=root, gid=root)


@pytest.mark.parametrize(
    ("network", "spec", "has_new"),
    [
        ("none", make_spec(), True),
        ("none", make_spec(network="/n"), True),
        ("sandbox", make_spec(), True),
        ("sandbox", make_spec("network"), True),
        ("sandbox", make_spec(network="/n"), False),
        ("host", make_spec(), False),
        ("host", make_spec(network="/n"), False),
        ("host", make_spec("network"), True),
    ],
)
@pytest.mark.parametrize("year", GENERATIONS)
def test_sandbox_namespaces(year: int, network: str, spec: Spec, has_new: bool) -> None:
    driver, settings = make(year, network=network)
    found = names(driver.sandbox_namespaces(settings, spec))
    assert found == {"ipc", "mnt", "uts", "pid"} | ({"net"} if has_new else set())
    assert names(driver.gofer_namespaces()) == {"ipc", "mnt", "uts", "pid", "net"}


def gofer_argv(year: int, **flags: str) -> tuple[tuple[str, ...], dict[int, int]]:
    driver, settings = make(year, **flags)
    command = driver.gofer_command(
        "/r",
        settings,
        GoferCommand(
            container_id="c",
            bundle="/b",
            spec_fd=20,
            mounts_fd=21,
            io_fds=(22, 23),
            confs=(MountConf(upper="self"), MountConf()),
            rpc_fd=24,
        ),
    )
    return command.argv, dict(command.fds)


def test_gofer_command() -> None:
    old, fds = gofer_argv(2022, debug="true")
    assert old == (
        "runsc-gofer",
        "--root=/r",
        "--debug=true",
        "gofer",
        "--bundle=/b",
        "--spec-fd=3",
        "--mounts-fd=4",
        "--io-fds=5",
        "--io-fds=6",
    )
    assert fds == {3: 20, 4: 21, 5: 22, 6: 23}
    middle, _ = gofer_argv(2024)
    assert "--gofer-mount-confs=lisafs:self,lisafs:none" in middle
    assert middle[-1] == "--io-fds=6"
    new, fds = gofer_argv(2026)
    assert new[-4:] == ("--rpc-fd=5", "--io-fds=6", "--io-fds=7", "c")
    assert fds[5] == 24
    assert not any("sync-chroot" in word for word in new)


def boot_argv(year: int, **changes: Any) -> tuple[str, ...]:
    driver, settings = make(year, **changes.pop("flags", {}))
    wanted = BootCommand(
        sandbox_id="s",
        bundle="/b",
        credentials=driver.sandbox_credentials(settings, make_spec()),
        spec_fd=20,
        mounts_fd=21,
        controller_fd=22,
        start_sync_fd=23,
        io_fds=(24,),
        filestore_fds=(25,),
        stdio=(0, 1, 1),
        confs=(MountConf(upper="self"),),
        total_memory=100,
        host_memory=200,
    ).replace(**changes)
    return driver.boot_command("/r", settings, wanted).argv


def test_boot_command() -> None:
    assert boot_argv(2022) == (
        "runsc-sandbox",
        "--root=/r",
        "boot",
        "--bundle=/b",
        "--io-fds=3",
        "--overlay-filestore-fd=4",
        "--mounts-fd=5",
        "--start-sync-fd=6",
        "--controller-fd=7",
        "--spec-fd=8",
        "--pidns=true",
        "--setup-root",
        "--stdio-fds=9",
        "--stdio-fds=10",
        "--stdio-fds=11",
        "--total-memory=100",
        "s",
    )
    middle = boot_argv(2024, flags={"root": "/ignored"}, cpu_count=3, attached=True, device_fd=9)
    for word in (
        "--gofer-filestore-fds=4",
        "--gofer-mount-confs=lisafs:self",
        "--pidns=true",
        "--apply-caps=true",
        "--total-host-memory=200",
        "--cpu-num=3",
        "--attached",
        "--device-fd=9",
    ):
        assert word in middle, word
    assert "--root=/ignored" not in middle
    new = boot_argv(2026, cpu_quota=5, cpu_period=6, pin_ring_fd=12)
    assert any(word.startswith("--pin-ring-fd=") for word in new)
    assert [GENERATIONS[year].pins_files for year in (2022, 2024, 2026)] == [False, False, True]
    assert "--cpu-quota=5" in new and "--cpu-period=6" in new
    assert not any("pidns" in word for word in new)
    assert not any("cpu-quota" in word for word in boot_argv(2024, cpu_quota=5, cpu_period=6))


@pytest.mark.parametrize(
    ("year", "flag", "count", "quota", "shown"),
    [
        (2026, "", 8, 250000, 3),
        (2026, "", 8, 50000, 2),  # one CPU alone makes programs leave locks out
        (2026, "", 1, 50000, 1),
        (2026, "", 2, 900000, 2),
        (2026, "false", 8, 250000, 8),
        (2026, "", 8, None, 8),
        (2024, "", 8, 250000, 8),
        (2024, "true", 8, 250000, 3),
        (2022, "true", 8, 300000, 3),
    ],
)
def test_as_many_cpus_as_the_quota_pays_for(
    year: int, flag: str, count: int, quota: int | None, shown: int
) -> None:
    """By cpu-num-from-quota, whose default is the binary's own."""
    flags = {"cpu-num-from-quota": flag} if flag else {}
    period = None if quota is None else 100000
    argv = boot_argv(year, flags=flags, cpu_count=count, cpu_quota=quota, cpu_period=period)
    assert f"--cpu-num={shown}" in argv


def test_log_descriptors_are_global_flags() -> None:
    argv = boot_argv(
        2024, files=Donated(everywhere={"debug-log-fd": 30}, of_command={"trace-fd": 31})
    )
    assert argv.index("--debug-log-fd=3") < argv.index("boot")
    assert argv.index("boot") < next(
        i for i, word in enumerate(argv) if word.startswith("--trace-fd=")
    )


@pytest.mark.parametrize("year", [2024, 2026])
def test_device_gofer_and_the_drivers_version(year: int) -> None:
    argv = boot_argv(year, device_io_fd=40, nvidia_driver="1.2.03")
    assert "--nvidia-driver-version=1.2.03" in argv
    assert [word for word in argv if word.startswith("--dev-io-fd=")]
    driver, settings = make(year)
    wanted = GoferCommand(
        container_id="c",
        bundle="/b",
        spec_fd=20,
        mounts_fd=21,
        io_fds=(22,),
        confs=(MountConf(),),
        device_io_fd=41,
    )
    command = driver.gofer_command("/r", settings, wanted)
    (word,) = [word for word in command.argv if word.startswith("--dev-io-fd=")]
    assert command.fds[int(word.partition("=")[2])] == 41
    spec = {"process": {}}
    started = driver.start_subcontainer_argument("c", spec, settings, (), 0, True)
    assert started["IsDevIoFilePresent"] is True
    assert not driver.start_subcontainer_argument("c", spec, settings, (), 0)["IsDevIoFilePresent"]


def test_files_of_file_systems_that_are_restored_and_saved() -> None:
    argv = boot_argv(2026, restored_files=(30, 31, 32, 33), saved_files=(34, 35, 36, 37))
    for name in ("fs-restore-fds", "fs-save-fds"):
        words = [word for word in argv if word.startswith(f"--{name}=")]
        assert len(words) == 4
        assert argv.index("boot") < argv.index(words[0])
    assert not [word for word in boot_argv(2024) if "fs-" in word]


def test_command_lines_have_known_flags_only() -> None:
    for year, generation in GENERATIONS.items():
        for argv, known in (
            (boot_argv(year, cpu_quota=1, cpu_period=1, cpu_count=1), generation.boot_flags),
            (gofer_argv(year)[0], generation.gofer_flags),
        ):
            after = argv[[*argv].index("boot" if "boot" in argv else "gofer") + 1 :]
            flags = {word[2:].partition("=")[0] for word in after if word.startswith("--")}
            assert flags <= known


def test_user_maps() -> None:
    spec = make_spec("user")
    assert d.user_maps("nobody", spec)[0] == ((65534, 65534, 1),)
    assert d.user_maps("identity", spec)[1] == ((0, 0, 4294967295),)
    assert d.user_maps("spec", spec) == (((0, 5, 9),), ((0, 5, 9),))


def test_execute_argument() -> None:
    driver, _ = make(2024)
    argument = driver.execute_argument("c", ProcessSpec(args=("x",)), True)
    assert argument["StdioIsPty"] is True
    assert argument["Capabilities"] is None
    assert argument["ContainerID"] == "c"


def test_old_subcontainers_have_no_confs() -> None:
    for year, has in ((2022, False), (2024, True)):
        driver, settings = make(year)
        argument = driver.start_subcontainer_argument("c", {}, settings, (), 0)
        assert ("GoferMountConfs" in argument) is has
        assert argument["Conf"]["FileAccessMounts"] == 1
        assert argument["Conf"]["DCache"] == -1
        assert argument["Conf"]["DirectFS"] is (year > 2022)


@pytest.mark.parametrize(("year", "given"), [(2022, False), (2024, False), (2026, True)])
def test_flags_that_a_container_overrides_reach_both_processes(year: int, given: bool) -> None:
    """Older ones read them from the spec by themselves."""
    settings = make(year)[1].replace(effective={"host-uds": "open"})
    driver = DirectDriver(GENERATIONS[year])
    gofer = GoferCommand(
        container_id="c", bundle="/b", spec_fd=3, mounts_fd=4, io_fds=(5,), confs=(), rpc_fd=6
    )
    boot = BootCommand(
        sandbox_id="c",
        bundle="/b",
        credentials=Credentials(),
        spec_fd=3,
        mounts_fd=4,
        controller_fd=5,
        start_sync_fd=6,
        io_fds=(7,),
        filestore_fds=(),
        stdio=(8, 9, 10),
        confs=(),
        total_memory=1,
        host_memory=1,
    )
    for command in (
        driver.gofer_command("/r", settings, gofer),
        driver.boot_command("/r", settings, boot),
    ):
        assert ("--host-uds=open" in command.argv) is given
