"""What happens when a process of a pod dies, for each process and each moment.

The one list: `test_faults.py` proves each row on real programs, `docs/fault_table.py` writes
them into ARCHITECTURE.md, and a unit test compares.  Imports nothing, so that all three can.
"""

from __future__ import annotations

from typing import NamedTuple

VICTIMS = ("shim", "sentry", "gofer", "root gofer", "containerd")
MOMENTS = ("pod create", "pod start", "create", "start", "running", "exec", "stop", "delete")

#: Who takes away what the dead process leaves.
DELETE = "`delete`"
SHIM = "the shim"
ITSELF = "the shim, which ends by itself"
SENTRY = "the sentry, then the shim"


class Row(NamedTuple):
    """One death.  `container`, `other` and `pod` are what CRI tells afterwards.

    `call` is the outcome of the operation that was under way, `container` what it was about, and
    `other` runs beside it.  A number is an exit code; of several, which one is a race's outcome.
    """

    victim: str
    moment: str
    call: str
    container: str
    other: str
    pod: str
    cleaner: str
    #: Proved on every containerd, not only on the one that the tests use first.
    everywhere: bool = False

    #: containerd 2 has members of a pod cleaned up by nobody, and keeps such a bundle that no
    #: call can reach any more; its next start removes it.
    bundle_stays: bool = False

    @property
    def name(self) -> str:
        return f"{self.victim}, {self.moment}"


#: A container that never ran counts as exited with 128 for CRI; one whose shim is gone gets
#: `delete`'s 137 or, as containerd 2 asks nobody, 255.
ROWS = (
    Row("shim", "pod create", "fails", "", "", "gone", DELETE, True),
    Row("shim", "pod start", "fails", "", "", "gone or not ready", DELETE),
    Row("shim", "create", "fails", "128", "137 or 255", "not ready", DELETE, True),
    Row("shim", "start", "fails", "128", "137 or 255", "not ready", DELETE, True, True),
    Row("shim", "running", "fails", "137 or 255", "137 or 255", "not ready", DELETE, True),
    Row("shim", "exec", "fails", "137 or 255", "137 or 255", "not ready", DELETE),
    # containerd 2.3 and later take the shim's end for the container's.
    Row("shim", "stop", "fails or succeeds", "137 or 255", "137 or 255", "not ready", DELETE),
    Row("shim", "delete", "", "137", "137 or 255", "not ready", DELETE, True),
    Row("sentry", "pod create", "fails", "", "", "gone", SHIM),
    Row("sentry", "pod start", "fails", "", "", "gone", SHIM),
    Row("sentry", "create", "fails", "128", "137", "not ready", SHIM),
    Row("sentry", "start", "fails", "128", "137", "not ready", SHIM),
    Row("sentry", "running", "ends with 137", "137", "137", "not ready", SHIM, True),
    Row("sentry", "exec", "fails", "137", "137", "not ready", SHIM),
    Row("sentry", "stop", "succeeds", "137", "137", "not ready", SHIM),
    Row("sentry", "delete", "", "137", "137", "not ready", SHIM, True),
    Row("gofer", "create", "fails", "128", "runs", "ready", SHIM),
    Row("gofer", "start", "fails", "128", "runs", "ready", SHIM),
    Row("gofer", "running", "ends with 137", "137", "runs", "ready", SENTRY, True),
    Row("gofer", "exec", "fails or ends with 137", "137", "runs", "ready", SENTRY),
    Row("gofer", "stop", "succeeds", "137 or 143", "runs", "ready", SENTRY),
    Row("gofer", "delete", "", "137", "runs", "ready", "itself: it ended with its container"),
    Row("root gofer", "pod create", "fails", "", "", "gone", SHIM),
    Row("root gofer", "pod start", "fails", "", "", "gone", SHIM),
    Row("root gofer", "create", "fails", "128", "137", "not ready", SENTRY),
    Row("root gofer", "start", "fails or succeeds", "128 or 137", "137", "not ready", SENTRY),
    Row("root gofer", "running", "ends with 137", "137", "137", "not ready", SENTRY),
    Row("root gofer", "exec", "fails or ends with 137", "137", "137", "not ready", SENTRY),
    Row("root gofer", "stop", "succeeds", "137 or 143", "137", "not ready", SENTRY),
    Row("root gofer", "delete", "", "137", "137", "not ready", SENTRY),
    Row("containerd", "pod create", "is cut off", "", "", "not ready", ITSELF, True),
    Row("containerd", "pod start", "is cut off", "", "", "ready", "nobody: the pod runs on", True),
    Row("containerd", "create", "is cut off", "created", "runs", "ready", SHIM, True),
    Row("containerd", "start", "is cut off", "runs", "runs", "ready", SHIM),
    Row("containerd", "running", "is cut off", "runs", "runs", "ready", SHIM, True),
    Row("containerd", "exec", "is cut off", "runs", "runs", "ready", SHIM),
    Row("containerd", "stop", "is cut off", "143", "runs", "ready", SHIM),
    Row("containerd", "delete", "", "137", "runs", "ready", SHIM, True),
)
