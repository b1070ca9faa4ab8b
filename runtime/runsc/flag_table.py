"""Every global flag of runsc's releases since 2022, and who acts by it.

No flag may be accepted and then ignored, since its user relies on it.  So each flag is in exactly
one of the groups below; one that is in none belongs to a newer release, is passed on, and is noted
in the log.  The groups follow gVisor's ``runsc/config/flags.go`` and the readers of each member of
its ``Config``.  Pure.
"""

from __future__ import annotations

from runtime.base.golang import parse_bool
from runtime.runsc import donated_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What gofer and sentry do by themselves, given the flag.
PASSED = _names(
    """
    allow-live-tcp-migration allow-packet-socket-write allow-suid alsologtostderr app-huge-pages
    character-device-policy control-rpc-stop-timeout dcache debug debug-log-format
    enable-core-tags fdlimit file-access file-access-mounts fsgofer-host-uds gvisor-marker-file
    host-fifo host-uds iouring kvm-use-cpu-nums log-format mount-cgroup-v2
    nvproxy-allow-unsupported-driver nvproxy-allowed-driver-capabilities oci-seccomp
    override-procs panic-signal profile profile-gc-interval profiling-metrics
    profiling-metrics-rate-us ref-leak-mode restore-spec-validation strace strace-event
    strace-log-size strace-syscalls systrap-disable-fast-path systrap-disable-syscall-patching
    TESTONLY-afs-syscall-panic TESTONLY-allow-packet-endpoint-write TESTONLY-nftables traceback
    watchdog-action
    """
)
#: What the shim acts by, or tells the sentry in its calls.
OURS = _names(
    """
    allow-connected-on-save allow-flag-override cpu-num-from-quota debug-command
    debug-to-user-log directfs gso gvisor-gro ignore-cgroups log-packets metric-server
    net-disconnect-ok net-raw network network-processors-per-channel num-network-channels
    nvproxy nvproxy-driver-version overlay overlay2 pause-external-networking pcap-log platform
    platform_device_path qdisc qdisc-tbf-burst qdisc-tbf-rate root rx-checksum-offload
    sidecar-release-enforcement-policy sidecar-usage-policy software-gso systemd-cgroup tpuproxy
    tx-checksum-offload
    """
)
#: Files that the shim opens, as gofer and sentry are locked in: see ``donated_files.py``.
FILES = frozenset(donated_files.FLAGS)
#: What gVisor itself has no use for any more.  ``cgroupfs`` and ``save-restore-netstack`` had one
#: for the sentries of older releases, which see to it themselves.
OBSOLETE = frozenset(
    ["buffer-pooling", "cgroupfs", "fuse", "lisafs", "save-restore-netstack", "vfs2"]
)
#: Descriptors, which are the shim's to number, and flags that make another command of a command.
RESERVED = frozenset(
    ["coverage-fd", "debug-log-fd", "h", "help", "log-fd", "panic-log-fd", "version"]
)
#: What needs more than a gofer and a sentry that the shim can start, and what that is.
REFUSED: Mapping[str, str] = {
    "EXPERIMENTAL-afxdp": "XDP sockets need a program in the host's kernel",
    "EXPERIMENTAL-xdp": "XDP sockets need a program in the host's kernel",
    "EXPERIMENTAL-xdp-need-wakeup": "XDP sockets need a program in the host's kernel",
    "TESTONLY-autosave-image-path": "it is for gVisor's own tests",
    "TESTONLY-autosave-resume": "it is for gVisor's own tests",
    "TESTONLY-test-name-env": "it is for gVisor's own tests",
    "TESTONLY-unsafe-nonroot": "it is for gVisor's own tests",
    "afxdp": "XDP sockets need a program in the host's kernel",
    "allow-rootfs-tar-annotation": "no container is made from an archive of changes",
    "coverage-report": "it needs a runsc that was built for it",
    "gofer-network-namespace": "each gofer has an empty network namespace of its own",
    "host-settings": "the host's settings are not looked at",
    "nvproxy-docker": "nvidia-container-cli is not run; use CDI or NVIDIA's device plugin",
    "pod-init-config": "no trace session is set up; gvctl trace works on running sandboxes",
    "rdmaproxy": "gVisor's own support isn't finished",
    "reproduce-nat": "the host's packet filter is not read",
    "reproduce-nftables": "the host's packet filter is not read",
    "rootless": "the shim runs as root",
    "shared-root": "sandboxes share no state",
}
#: Values of refused flags that ask for what is done anyway.
_HARMLESS: Mapping[str, tuple[str, ...]] = {
    "EXPERIMENTAL-xdp": ("off",),
    "gofer-network-namespace": ("null", "new"),
    "host-settings": ("check", "ignore"),
}
ALL = PASSED | OURS | FILES | OBSOLETE | RESERVED | REFUSED.keys()


def why_refused(name: str, value: str, default: str) -> str:
    """Why a flag can't have the value; empty if it can.  ``default`` is the binary's own."""
    reason = REFUSED.get(name, "")
    if not reason or value in ("", default, *_HARMLESS.get(name, ())):
        return ""
    # What is off by default may be switched off.
    if parse_bool(value) is (parse_bool(default) or False):
        return ""
    return reason
