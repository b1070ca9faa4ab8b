"""GPUs and TPUs: whether a container asks for one, what its sandbox needs, and what is missing.

A container asks by the device files in its spec (NVIDIA's and Google's device plugins, CDI).  Its
sandbox is made for them by a flag, an annotation or its first container's devices.  The sentry
reaches them through a separate connection to the gofer, and knows the ABI of single versions of
NVIDIA's driver.  The rules are those of gVisor's ``runsc/specutils`` (nvidia.go, TPU) and
``runsc/sandbox`` (getNvproxyDriverVersion).  Reads the driver's version; starts nothing.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest, Unsupported, reason
from runtime.base.files import read_bounded
from runtime.base.golang import parse_bool
from runtime.base.json_fields import Fields
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.bundle.spec import Spec
    from runtime.runsc.flags import Settings
    from runtime.runsc.release import Generation

#: Where the kernel tells the version of NVIDIA's driver.
VERSION_FILE = "/proc/driver/nvidia/version"
_MAX_VERSION_FILE = 4096
_CONTROL = "/dev/nvidiactl"
# What no plugin hands out: a spec that lists it lists all that the host has (privileged).
_ALL_OF_THE_HOSTS = ("/dev/kmsg", "/dev/mem")
_LEGACY_HOOK = "/nvidia-container-runtime-hook"
_VISIBLE = "NVIDIA_VISIBLE_DEVICES="
_LATEST = "latest"
#: Versions that an error lists.
_SHOWN = 8


class _Accelerator(Record):
    what: str
    flag: str
    annotation: str

    @property
    def advice(self) -> str:
        """How an operator, or a pod's author, has a sandbox made for it."""
        return f'annotate the pod {self.annotation} = "true", or set {self.flag} in runsc_config'


_GPU = _Accelerator(what="GPU", flag="nvproxy", annotation="dev.gvisor.internal.nvproxy")
_TPU = _Accelerator(what="TPU", flag="tpuproxy", annotation="dev.gvisor.internal.tpuproxy")
_KINDS = (_GPU, _TPU)


class Granted(Record):
    """A spec with the devices that the sandbox has a use for, and the flags that these need."""

    spec: Spec
    flags: Mapping[str, str]
    notes: tuple[str, ...] = ()


def prepare(
    spec: Spec, flags: Mapping[str, str], generation: Generation, host: Settings | None
) -> Granted:
    """Decide what a container gets of the accelerators that it asks for.

    ``flags`` are as configured; ``host`` are those of the sandbox that it joins, None for its own.

    Raises Unsupported naming what is missing.
    """
    _refuse_legacy_hook(spec)
    paths = _device_paths(spec)
    every = any(path in _ALL_OF_THE_HOSTS for path in paths)
    added: dict[str, str] = {}
    dropped: set[str] = set()
    notes: tuple[str, ...] = ()
    for kind in _KINDS:
        devices = [path for path in paths if _is_of(kind, path)]
        asked = _is_asked_for(kind, spec, flags)
        if not asked and not any(_asks(kind, path) for path in devices):
            continue
        if every and not asked:
            dropped.update(devices)
            notes += (f"no {kind.what} for having all of the host's devices: {kind.advice}",)
            continue
        if kind.flag not in generation.global_flags:
            raise Unsupported(f"runsc {generation.version} supports no {kind.what}s")
        if flags.get(kind.flag) and not parse_bool(flags[kind.flag]) and devices:
            raise Unsupported(
                f"the container asks for a {kind.what} ({devices[0]}), and runsc_config sets"
                f" {kind.flag} = {flags[kind.flag][:20]}"
            )
        if host is not None and devices and not host.boolean(kind.flag):
            raise Unsupported(
                f"the container asks for a {kind.what} ({devices[0]}), and its pod's sandbox was"
                f" made without: {kind.advice}"
            )
        added[kind.flag] = "true"
    if dropped:
        kept = [d for d in spec.raw["linux"]["devices"] if d.get("path") not in dropped]
        raw = {**spec.raw, "linux": {**spec.raw["linux"], "devices": kept}}
        spec = spec.replace(raw=raw)
    return Granted(spec=spec, flags=added, notes=notes)


def needs_device_gofer(spec: Spec, settings: Settings) -> bool:
    """Whether the sentry needs a connection to the gofer for device files of a prepared spec."""
    return any(
        settings.boolean(kind.flag) and any(_asks(kind, path) for path in _device_paths(spec))
        for kind in _KINDS
    )


def driver_version(
    settings: Settings,
    generation: Generation,
    supported: Callable[[], Sequence[str]],
    path: str = VERSION_FILE,
) -> str:
    """The version of NVIDIA's driver whose ABI the sentry is to speak; empty without a GPU.

    ``supported`` asks runsc which versions it knows.  Raises Unsupported naming what is missing,
    InvalidRequest for a configured version that is none.
    """
    if not settings.boolean(_GPU.flag):
        return ""
    known = {_number(text): text for text in supported()}
    known.pop((), None)
    if not known:
        raise Unsupported(f"runsc {generation.version} names no NVIDIA driver that it supports")
    configured = settings.effective.get("nvproxy-driver-version", "")
    if configured == _LATEST:
        return known[max(known)]
    wanted = _number(configured)
    if configured and not wanted:
        raise InvalidRequest(
            "runsc_config", f"nvproxy-driver-version {configured[:40]!r} is no version"
        )
    text = configured or _host_version(path)
    found = known.get(wanted or _number(text))
    if found is None and not settings.boolean("nvproxy-allow-unsupported-driver"):
        raise Unsupported(
            f"NVIDIA driver {text} is none that runsc {generation.version} supports:"
            f" {_some(known, _number(text))}"
        )
    return found or text


def parse_version(text: str) -> str:
    """The driver's version in what its file in /proc says; empty if it says none."""
    for line in text.splitlines():
        if line.startswith("NVRM version:"):
            return next((word for word in line.split() if _number(word)), "")
    return ""


def _host_version(path: str) -> str:
    try:
        data = read_bounded(path, _MAX_VERSION_FILE, follow=True)
    except OSError as error:
        raise Unsupported(f"no NVIDIA driver: {path}: {reason(error)}") from None
    if data is None:
        raise Unsupported(
            f"no NVIDIA driver: there is no {path}; load it, or set nvproxy-driver-version"
        )
    version = parse_version(data.decode("utf-8", "replace"))
    if not version:
        raise Unsupported(f"no NVIDIA driver: {path} tells no version")
    return version


def _number(text: str) -> tuple[int, ...]:
    """A version as ``535.161.07`` to be compared; empty if it is none."""
    parts = text.split(".")
    if not 2 <= len(parts) <= 3 or not all(
        p.isascii() and p.isdecimal() and len(p) < 6 for p in parts
    ):
        return ()
    return tuple(int(part) for part in (*parts, "0")[:3])


def _some(known: Mapping[tuple[int, ...], str], wanted: tuple[int, ...]) -> str:
    """The nearest versions, those of the same branch first."""
    near = [number for number in known if number[:1] == wanted[:1]] or list(known)
    shown = sorted(near)[-_SHOWN:]
    more = len(known) - len(shown)
    return ", ".join(known[number] for number in shown) + (f" and {more} others" if more else "")


def _device_paths(spec: Spec) -> list[str]:
    linux = Fields(dict(spec.raw), "config.json").fields("linux")
    devices = linux.all_fields("devices") if linux is not None else []
    return [device.text("path") for device in devices]


def _is_of(kind: _Accelerator, path: str) -> bool:
    if kind is _GPU:
        return path.startswith("/dev/nvidia")
    return path.startswith(("/dev/accel", "/dev/vfio"))


def _asks(kind: _Accelerator, path: str) -> bool:
    """Whether a container with such a device asks for an accelerator."""
    if kind is _GPU:
        return path == _CONTROL
    return _is_of(kind, path) and path != "/dev/vfio/vfio"


def _is_asked_for(kind: _Accelerator, spec: Spec, flags: Mapping[str, str]) -> bool:
    return bool(
        parse_bool(flags.get(kind.flag, ""))
        or parse_bool(spec.annotations.get(kind.annotation, ""))
    )


def _refuse_legacy_hook(spec: Spec) -> None:
    """One by which NVIDIA's command line would put devices and libraries into a container."""
    if _CONTROL in _device_paths(spec):
        return
    if not any(hook.path.endswith(_LEGACY_HOOK) for hook in spec.hooks.get("prestart", ())):
        return
    visible = next((v[len(_VISIBLE) :] for v in spec.process.env if v.startswith(_VISIBLE)), "")
    if visible not in ("", "void", "none"):
        raise Unsupported(
            "a GPU by nvidia-container-runtime-hook is not supported by the shim: use CDI, or a"
            " device plugin that lists the devices"
        )
