"""The programs beside a runsc: since August 2026 the sentry is a binary of its own.

Owns where gVisor's release keeps it (``gvisor-bin/gvisor_sentry``), which copies are unusable, and
the check that both are of one release.  The look-up and the check are those of gVisor's
``runsc/gvisorbinaries/gvisorbinaries.go``.  Reads the file system, starts nothing.
"""

from __future__ import annotations

import os
import stat

from runtime.base.errors import Failed, reason
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = "gvisor-bin"
SENTRY = "gvisor_sentry"
#: The operator's own folder of side-cars, in the shim's environment.
FOLDER_VARIABLE = "GVISOR_SIDECAR_BINARIES_DIR"
#: What a side-car compares with its own label, and dies where they differ.
RELEASE_VARIABLE = "GVISOR_ENFORCE_RELEASE"
_SKIPS = ("TESTONLY_SKIP", "SKIP")
_RELEASE_POLICY = "sidecar-release-enforcement-policy"
_USAGE_POLICY = "sidecar-usage-policy"


class Sidecar(Record):
    """Where a side-car is expected, and why it is of no use there; ``fault`` is empty if it is."""

    path: str
    fault: str = ""


def find_sentry(binary: str, folder: str | None = None) -> Sidecar:
    """The sentry that belongs to the runsc at ``binary``, an absolute path.

    It is in ``folder`` if one is named (by default the environment's), else beside ``binary``,
    else beside what ``binary`` is a link to.
    """
    if folder is None:
        folder = os.environ.get(FOLDER_VARIABLE, "")
    if not folder:
        folder = os.path.join(os.path.dirname(binary), FOLDER)
        if not os.path.isdir(folder):
            folder = os.path.join(os.path.dirname(os.path.realpath(binary)), FOLDER)
    path = os.path.join(os.path.abspath(folder), SENTRY)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return Sidecar(path=path, fault=reason(error))
    if not stat.S_ISREG(mode):
        return Sidecar(path=path, fault="not a regular file")
    if not mode & 0o111:
        return Sidecar(path=path, fault="not executable: it has no x bit")
    return Sidecar(path=path)


def is_required(flags: Mapping[str, str], defaults: Mapping[str, str]) -> bool:
    """Whether the operator, or the release, has the sentry booted by its own binary only."""
    return (flags.get(_USAGE_POLICY) or defaults.get(_USAGE_POLICY, "")).upper() == "STRICT"


def release_value(
    version: str, flags: Mapping[str, str], defaults: Mapping[str, str], inherited: str = ""
) -> str:
    """What RELEASE_VARIABLE is for a side-car of a runsc of this ``version``.

    ``inherited`` is the shim's own variable, by which the operator may skip the check.
    """
    for skip in _SKIPS:
        if inherited == skip or inherited.startswith(skip + ":"):
            return f"{skip}:{inherited[len(skip) + 1 :] or version}"
    policy = (flags.get(_RELEASE_POLICY) or defaults.get(_RELEASE_POLICY, "")).upper()
    if policy == "ALWAYS" or (policy == "IF_RELEASE_BUILD" and is_release(version)):
        return version
    return f"SKIP:{version}"


def is_release(version: str) -> bool:
    """Whether a version is that of a release, as ``release-20260817.0``."""
    prefix, dash, number = version.partition("-")
    if not dash or not (prefix == "release" or _is_google(prefix)):
        return False
    date, dot, patch = number.partition(".")
    return _is_digits(date) and len(date) == 8 and (not dot or _is_digits(patch))


def _is_google(prefix: str) -> bool:
    return prefix[:1] == "g" and all("a" <= letter <= "z" for letter in prefix)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def require_match(
    binary: str, version: str, sidecar: str, sidecar_version: str, value: str
) -> bool:
    """Whether both are of one release; ``value`` is that of RELEASE_VARIABLE.

    Raises Failed with both labels where they differ and the sentry would refuse to run.
    """
    if version == sidecar_version:
        return True
    if value == version:
        raise Failed(
            f"{sidecar} is of release {sidecar_version}, {binary} of {version}:"
            " all of gVisor's binaries must be of one release"
        )
    return False


def closed_folder(path: str) -> str:
    """The first folder above ``path`` that nobody but its owner may enter; empty without one.

    A sentry that runs as nobody can't be started from there.
    """
    parts = os.path.realpath(path).split("/")[1:-1]
    folder = ""
    for part in parts:
        folder += "/" + part
        try:
            if not os.stat(folder).st_mode & stat.S_IXOTH:
                return folder
        except OSError:
            return ""
    return ""
