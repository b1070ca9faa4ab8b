"""Mounts that gVisor can't make.  They are refused by name instead of being left out.

The sentry ignores a mount whose type it doesn't know, and an option that it doesn't know.  Owns the
list of what it knows (runsc/boot/vfs.go at each release, ``getMountNameAndOptions``;
runsc/specutils/fs.go).  Pure.
"""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.json_fields import Fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.bundle.spec import Mount, Spec

#: What each release mounts.
TYPES = frozenset(("tmpfs", "proc", "sysfs", "devpts", "cgroup"))
_NEWER_TYPES = {"cgroup2": "release-20260520"}
#: Callers ask for it in every container; message queues work without it.
_LEFT_OUT = ("mqueue",)
#: Whatever is to be mounted there, the sentry takes its own.
_OWN = {"/dev": ("devtmpfs", "dev"), "/dev/pts": ()}
_SHARED = ("shared", "rshared")
_ROOT_PROPAGATION = ("", "private", "rprivate", "slave", "rslave")
#: Options whose meaning would be missed, by what they ask for.
_REFUSED_OPTIONS = {
    "remount": "a mount can't be changed by another one",
}
_NOTED_OPTIONS = {
    # podman asks for it in every container with a read-only root.
    "tmpcopyup": "the files below aren't copied up",
    "nosymfollow": "links are followed",
    "rnosymfollow": "links are followed",
}
_NOTED_DATA = ("nr_inodes=", "nr_blocks=", "huge=", "mpol=")


def check(spec: Spec, newer: bool) -> tuple[str, ...]:
    """Refuse mounts that can't be made; returns what is done in part, in words for the log.

    ``newer`` releases know more types.

    Raises Unsupported naming the mount and what is wrong, InvalidRequest for one without source.
    """
    notes: list[str] = []
    for mount in spec.mounts:
        _check_type(mount, newer)
        _check_options(mount, notes)
    _check_root(spec)
    return tuple(notes)


def _check_type(mount: Mount, newer: bool) -> None:
    what = f"mount {mount.destination[:200]}"
    if mount.is_bind:
        if not mount.source:
            raise InvalidRequest("config.json: mounts", f"{what}: a bind mount without a source")
        return
    if mount.type in TYPES or mount.type in _LEFT_OUT:
        return
    if mount.type in _OWN.get(os.path.normpath(mount.destination), ()):
        return
    if mount.type in _NEWER_TYPES and newer:
        return
    raise Unsupported(f"{what}: gVisor has no file system of type {mount.type[:100]!r}")


def _check_options(mount: Mount, notes: list[str]) -> None:
    what = f"mount {mount.destination[:200]}"
    for option in mount.options:
        if option in _SHARED:
            raise Unsupported(
                f"{what}: propagation {option!r} (mountPropagation: Bidirectional): what a gVisor "
                "sandbox mounts can't reach the host"
            )
        if option in _REFUSED_OPTIONS and not mount.is_bind:
            raise Unsupported(f"{what}: option {option!r}: {_REFUSED_OPTIONS[option]}")
        if option in _NOTED_OPTIONS:
            notes.append(f"{what}: option {option!r}: {_NOTED_OPTIONS[option]}")
        elif mount.type == "tmpfs" and option.startswith(_NOTED_DATA):
            notes.append(f"{what}: option {option[:100]!r} has no effect")


def _check_root(spec: Spec) -> None:
    linux = Fields(dict(spec.raw), "config.json").fields("linux")
    propagation = linux.text("rootfsPropagation") if linux is not None else ""
    if propagation not in _ROOT_PROPAGATION:
        raise Unsupported(
            f"linux.rootfsPropagation {propagation[:100]!r}: what a gVisor sandbox mounts can't "
            "reach the host"
        )
