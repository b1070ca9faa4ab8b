"""The spec as gofer and sentry get it: what was checked, in a memory file."""

from __future__ import annotations

import os

from runtime.base import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.bundle.spec import Spec
    from runtime.host.fds import FdSet


def raw_spec(spec: Spec, terminal: bool) -> dict[str, Any]:
    """The spec as runsc gets it: as it was checked, and with a terminal if the caller gives one."""
    process = {**spec.raw["process"], "terminal": terminal}
    root = {**spec.raw["root"], "path": spec.root_path}
    raw = {**spec.raw, "process": process, "root": root}
    # Ours to run (hooks.py); a gofer would run some of them again (since release-20260520).
    raw.pop("hooks", None)
    return raw


def spec_file(spec: Spec, terminal: bool, fds: FdSet) -> int:
    """A file with the spec.  Each reader needs one of its own: runsc reads it twice.

    What was validated is what runs, whatever happens to config.json meanwhile.
    """
    fd = fds.add(os.memfd_create("config.json", os.MFD_CLOEXEC))
    text = fastjson.dumps(raw_spec(spec, terminal))
    data = memoryview(text.encode("ascii"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
