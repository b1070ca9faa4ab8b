"""What the help of three generations of runsc says, in the form of Go's ``flag`` package."""

from __future__ import annotations

from runtime.runsc.release import Generation, parse_help

_BOOT = (
    "apply-caps attached bundle controller-fd cpu-num device-fd io-fds mounts-fd "
    "pod-init-config-fd setup-root spec-fd start-sync-fd stdio-fds total-memory user-log-fd "
    "profile-block-fd profile-cpu-fd profile-heap-fd profile-mutex-fd trace-fd"
)
_BOOT_2024 = "dev-io-fd nvidia-driver-version profiling-metrics-fd profiling-metrics-fd-lossy"
_GOFER = "apply-caps bundle io-fds mounts-fd setup-root spec-fd"
_GLOBAL = (
    "allow-flag-override debug debug-command debug-log file-access file-access-mounts=shared "
    "host-fifo host-uds log log-fd net-raw network oci-seccomp overlay overlay2 panic-log "
    "panic-signal platform_device_path root rootless strace ignore-cgroups profile profile-cpu "
    "trace"
)
_LATER = (
    "directfs=true nvproxy nvproxy-driver-version nvproxy-allow-unsupported-driver tpuproxy "
    "debug-to-user-log net-disconnect-ok"
)

#: Year -> (boot, gofer, global flags, the gofer's positional arguments).
_SOURCES = {
    2022: (
        f"{_BOOT} overlay-filestore-fd pidns",
        _GOFER,
        f"{_GLOBAL} cpu-num-from-quota platform=ptrace",
        "",
    ),
    2024: (
        f"{_BOOT} gofer-filestore-fds gofer-mount-confs pidns total-host-memory {_BOOT_2024}",
        f"{_GOFER} dev-io-fd gofer-mount-confs",
        f"{_GLOBAL} {_LATER} cpu-num-from-quota platform=systrap overlay2=root:self",
        "",
    ),
    2026: (
        f"{_BOOT} gofer-filestore-fds gofer-mount-confs total-host-memory cpu-quota cpu-period "
        f"{_BOOT_2024} final-metrics-log-fd nvidia-host-params pin-ring-fd fs-restore-fds "
        "fs-save-fds",
        f"{_GOFER} dev-io-fd gofer-mount-confs rpc-fd sync-chroot-fd",
        f"{_GLOBAL} {_LATER} cpu-num-from-quota=true platform=systrap overlay2=root:self",
        " <container ID>",
    ),
}


def help_text(year: int, topic: str) -> str:
    """What ``runsc help boot``, ``runsc help gofer`` or ``runsc flags`` prints."""
    boot, gofer, flags, positional = _SOURCES[year]
    words = {"boot": boot, "gofer": gofer, "flags": flags}[topic].split()
    usage = {"boot": "boot [flags] <container id>", "gofer": "gofer [flags]" + positional}
    text = usage.get(topic, "")
    for word in words:
        name, _, default = word.partition("=")
        shown = f'"{default}"' if name == "platform" else default
        text += f"  -{name} value\n    \twhat it is for: x (default), or -y"
        text += f" (default {shown})\n" if default else "\n"
    return text


def _generation(year: int) -> Generation:
    usage, gofer = parse_help(help_text(year, "gofer"))
    return Generation(
        binary="/usr/bin/runsc",
        version=f"0.0~{year}",
        boot_binary="/usr/bin/runsc",
        boot_version=f"0.0~{year}",
        boot_flags=frozenset(parse_help(help_text(year, "boot"))[1]),
        gofer_flags=frozenset(gofer),
        global_flags=parse_help(help_text(year, "flags"))[1],
        gofer_takes_id="<" in usage,
    )


GENERATIONS = {year: _generation(year) for year in _SOURCES}
