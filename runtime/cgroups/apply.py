"""Writes a list of limits as one step: all of them, or none.

Knows how cgroup files are restored, and not which limit belongs into which file.
"""

from __future__ import annotations

import errno
import os

from runtime.base.errors import Unsupported
from runtime.base.log import get_logger
from runtime.cgroups.hierarchy import fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.cgroups.hierarchy import CgroupRoot
    from runtime.cgroups.settings import Setting

_log = get_logger("cgroup")

# What an obsolete file answers where the kernel no longer has the feature.
_OBSOLETE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)


def apply(
    root: CgroupRoot, writes: Sequence[tuple[Setting, str]], *, restorable: bool = True
) -> Callable[[], None]:
    """Write each setting's value to its path; returns what undoes it.

    Some limits bound one another (memory and memory+swap; quota, period and burst), and which
    must be written first depends on whether they rise or fall.  The kernel answers EINVAL to the
    wrong order, so what it refused is tried once more after the others, for as long as that
    helps.

    On failure everything written is restored, in reverse and as far as the kernel allows, and
    the error raised: Unsupported for a file that this kernel doesn't have, CgroupDenied, Failed.
    Without ``restorable`` nothing is read beforehand nor restored (for a cgroup just made).
    """
    old: dict[str, str | None] = {}
    if restorable:
        for setting, path in writes:
            if path not in old:
                old[path] = _present(root, setting, path)
    done: list[tuple[Setting, str]] = []
    pending = list(writes)
    while pending:
        refused: list[tuple[Setting, str]] = []
        first: OSError | None = None
        for setting, path in pending:
            try:
                root.write(path, setting.value)
            except OSError as error:
                if setting.optional and error.errno in _OBSOLETE:
                    _log.warning("limit.skipped", file=setting.file, error=error.strerror)
                elif error.errno == errno.EINVAL:
                    refused.append((setting, path))
                    first = first or error
                else:
                    _restore(root, done, old)
                    raise _explain(setting, path, error) from error
            else:
                done.append((setting, path))
        if first is not None and len(refused) == len(pending):
            _restore(root, done, old)
            raise _explain(*refused[0], first) from first
        pending = refused
    return lambda: _restore(root, done, old)


def _present(root: CgroupRoot, setting: Setting, path: str) -> str | None:
    try:
        return root.read(path)
    except FileNotFoundError as error:
        if setting.optional:
            return None
        raise _explain(setting, path, error) from error
    except OSError:
        return None  # can be written but not read, so not restored either


def _explain(setting: Setting, path: str, error: OSError) -> Exception:
    if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(path)):
        return Unsupported(f"{setting.field}: {path} does not exist on this host")
    return fault(f"{setting.field}: write {setting.value!r} to {path}", error)


def _restore(
    root: CgroupRoot, done: Sequence[tuple[Setting, str]], old: dict[str, str | None]
) -> None:
    # Backwards through states that the kernel has accepted before, so no order is refused.
    for setting, path in reversed(done):
        text = old.get(path)
        if text is None:
            continue
        try:
            root.write(path, _restoring(setting, text))
        except OSError as error:
            _log.warning("limit.not_restored", file=path, error=error.strerror)


def _restoring(setting: Setting, text: str) -> str:
    """What to write to get the contents ``text`` back, as far as ``setting`` changed them."""
    if setting.file == "memory.oom_control":
        return text.split("\n", 1)[0].rpartition(" ")[2]
    if setting.key:
        for line in text.splitlines():
            if line.startswith(f"{setting.key} "):
                return line
        # A lone number is the default weight of a kernel without weights per device.
        return text if setting.key == "default" and text.isdigit() else setting.unset
    return text or "\n"
