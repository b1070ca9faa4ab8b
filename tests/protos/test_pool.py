"""The lean way to message classes and the public one give the same, and the lean one is lean."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

USE = """
import threading
from protos import _pool, cgroups_v2_pb2, events_pb2, task_pb2, wkt_pb2
found = []
threads = [threading.Thread(target=lambda: found.append(task_pb2.WaitRequest)) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(set(found)) == 1
response = task_pb2.StateResponse(id="i", status=task_pb2.RUNNING)
response.exited_at.seconds = -62135596800
update = task_pb2.UpdateTaskRequest(annotations={"k": "v"})
update.resources.CopyFrom(wkt_pb2.Any(type_url="t"))
create = events_pb2.TaskCreate()
create.rootfs.add(type="bind", options=["ro"])
metrics = cgroups_v2_pb2.Metrics()
metrics.memory_events.oom_kill = 1
from google.protobuf.message import DecodeError
try:
    task_pb2.StateRequest.FromString(b"\\xff")
except DecodeError:
    pass
else:
    raise SystemExit("bad bytes were taken")
print(type(_pool._backend).__name__)
for m in (response, update, create, metrics): print(m.SerializeToString().hex())
"""

EXPECTED = [
    "0a0169 2002 520b 088092b8c398feffffff01",
    "1203 0a0174 1a06 0a016b 120176",
    "1a0a 0a0462696e64 2202726f",
    "4202 2801",
]

# What may stand in the place of protobuf's C core, and what must come of it.
CORES = {
    "as it is": ("", "_Upb"),
    "absent": ("import sys; sys.modules['google._upb'] = None", "_Public"),
    "without a metaclass": (
        "import sys, types, google._upb as p;"
        "from google.protobuf import message;"
        "m = types.ModuleType('google._upb._message'); m.DescriptorPool = object;"
        "p._message = m; sys.modules[m.__name__] = m",
        "_Public",
    ),
    "that refuses": (
        "from google._upb import _message\n"
        "class Refuses(type):\n"
        "    def __new__(*a): raise TypeError('no')\n"
        "_message.MessageMeta = Refuses",
        "_Public",
    ),
    "that encodes otherwise": (
        "from google._upb import _message\n"
        "real = _message.MessageMeta\n"
        "class Other:\n"
        "    def __init__(self, **_): pass\n"
        "    def SerializeToString(self): return b''\n"
        "_message.MessageMeta = lambda *a: Other",
        "_Public",
    ),
}
# Cores that are broken for us are broken for the public API too, unless that uses another.
PYTHON = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}


def python(code: str, **environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")


@pytest.mark.parametrize("core", CORES)
def test_the_same_messages_from_either_backend(core: str) -> None:
    prelude, backend = CORES[core]
    environment = {} if backend == "_Upb" else PYTHON
    lines = python(f"{prelude}\n{USE}", **environment)
    assert lines[0] == backend
    assert lines[1:-1] == [text.replace(" ", "") for text in EXPECTED]


def test_public_api_on_the_c_core() -> None:
    code = f"from protos import _pool\n_pool._Upb = None\n{USE}"
    lines = python(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="upb")
    assert lines[0] == "_Public"
    assert lines[1:-1] == [text.replace(" ", "") for text in EXPECTED]


def test_only_the_c_core_is_imported() -> None:
    code = (
        "import sys, threading; before = set(sys.modules)\n"
        "from protos import task_pb2, events_pb2, wkt_pb2\n"
        "assert 'google' not in sys.modules\n"
        "task_pb2.CreateTaskRequest.FromString(b'').options.type_url\n"
        "events_pb2.TaskExit(exited_at=wkt_pb2.Timestamp(seconds=1)).SerializeToString()\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = python(code)[0].split()
    foreign = {m for m in loaded if m.startswith("google.")}
    # What the C core itself wants differs a little between interpreters.
    assert foreign <= {
        "google._upb",
        "google._upb._message",
        "google.protobuf",
        "google.protobuf.internal",
        "google.protobuf.internal.enum_type_wrapper",
        "google.protobuf.message",
    }
    assert "google._upb._message" in foreign
    assert not {"typing", "re", "enum", "datetime", "inspect"}.intersection(loaded)


def test_protobufs_own_modules_still_work_beside_it() -> None:
    code = (
        "from protos import wkt_pb2\n"
        "wkt_pb2.Timestamp(seconds=1)\n"
        "from google.protobuf import any_pb2, timestamp_pb2\n"
        "from google.protobuf.internal import well_known_types\n"
        "assert well_known_types.WKTBASES\n"
        "a = any_pb2.Any(type_url='t', value=b'v').SerializeToString()\n"
        "assert wkt_pb2.Any.FromString(a).value == b'v'\n"
        "assert any_pb2.Any is not wkt_pb2.Any\n"
    )
    python(code)
