"""``debug``: all that a report of a fault needs, as one archive, and nothing that is secret.

Each part is gathered by itself: what can't be had is said in its place, and hinders no other.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from functools import partial

from runtime.base import files
from runtime.base.errors import DeadlineExceeded, InvalidRequest, RuntimeFault, reason
from runtime.cli import find, logs, output, settings, show
from runtime.cli.insight import redacted
from runtime.cli.main import _version

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    from runtime.state.loaded import StoredContainer

    Part = tuple[str, Callable[[], str]]

#: Bytes of each log that are taken, from its end, and of any other part.
MAX_LOG = 4 << 20
_MAX_PART = 16 << 20
_MAX_CONTAINERS = 100
_TIMEOUT = 3.0
#: Of the sentry, the shim and each gofer.
_PROC = ("status", "limits", "cgroup", "wchan", "oom_score_adj", "smaps_rollup", "stat")
_HOST = ("version", "loadavg", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")


def debug_verb(args: argparse.Namespace) -> int:
    """``debug``: 0, as an archive with less is one, too; it says what it lacks."""
    container = find.find(args)
    family, problems = container.load_sandbox(container.root, container.sandbox_id)
    family = family[:_MAX_CONTAINERS] or [container]
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = f"gvctl-debug-{container.id[:64]}-{stamp}"
    path = args.output or f"{folder}.tar.gz"
    if path == "-" and os.isatty(1):
        raise InvalidRequest("-", "is an archive, which is not for a terminal")
    specs, secrets = _specs(family)
    lacks = list(problems)
    with _Archive(path, folder, secrets) as archive:
        # Of a sentry that hangs one part is waited for, and not every part of each container.
        mute: set[str] = set()
        for name, gather in _parts(args, container, family, specs):
            who = _asks(name)
            if who in mute:
                lacks.append(f"{name}: the {who} didn't answer before")
                continue
            try:
                archive.add(name, gather())
            except (RuntimeFault, OSError) as error:
                if isinstance(error, DeadlineExceeded) and who:
                    mute.add(who)
                text = reason(error) if isinstance(error, OSError) else str(error)
                lacks.append(f"{name}: {text}")
        archive.add("lacks.txt", "".join(f"{each}\n" for each in lacks))
    if path != "-":
        for each in lacks:
            output.warn(f"without {each}")
        output.write(f"{path}\n")
    return 0


def _asks(name: str) -> str:
    """Who has to answer for a part."""
    if name.startswith("shim/") and name != "shim/process.txt":
        return "shim"
    if name.endswith(("/ps.txt", "/figures.json")) or name == "sentry/stacks.txt":
        return "sentry"
    return ""


class _Archive:
    """A tar archive that is being written; for root's eyes only, and never over another file."""

    def __init__(self, path: str, folder: str, secrets: list[str]) -> None:
        self._path, self._folder, self._secrets = path, folder, secrets
        self._now = time.time()

    def __enter__(self) -> _Archive:
        if self._path == "-":
            self._file: Any = sys.stdout.buffer
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")
            except OSError as error:
                raise InvalidRequest(self._path, reason(error)) from None
        self._tar = tarfile.open(fileobj=self._file, mode="w|gz")
        return self

    def add(self, name: str, text: str) -> None:
        data = redacted.text(text, self._secrets).encode("utf-8", "replace")[:_MAX_PART]
        info = tarfile.TarInfo(f"{self._folder}/{name}")
        info.size, info.mode, info.mtime = len(data), 0o600, int(self._now)
        self._tar.addfile(info, io.BytesIO(data))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._tar.close()
        if self._path == "-":
            self._file.flush()
            return
        self._file.close()
        if kind is not None:
            os.unlink(self._path)


def _specs(family: list[StoredContainer]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    specs = {}
    for each in family:
        try:
            specs[each.id] = dict(each.spec.raw)
        except RuntimeFault:
            continue  # its bundle is gone; said where it would be
    return specs, redacted.secrets_of(specs.values())


def _parts(
    args: argparse.Namespace,
    container: StoredContainer,
    family: list[StoredContainer],
    specs: dict[str, dict[str, Any]],
) -> Iterator[Part]:
    # First, as it tells whether the sentry answers at all.
    yield "sentry/stacks.txt", partial(container.stacks, _TIMEOUT)
    yield "versions.txt", partial(_versions, container)
    yield "doctor.txt", partial(_doctor, args)
    yield "options.toml", partial(_options, args)
    yield "host.txt", partial(_texts, *(f"/proc/{name}" for name in _HOST))
    for each in family:
        folder = f"containers/{each.id[:64]}"
        yield f"{folder}/state.json", partial(_state, each)
        yield f"{folder}/record.json", partial(_record, each)
        yield f"{folder}/config.json", partial(_config, each, specs)
        yield f"{folder}/ps.txt", partial(_ps, each)
        yield f"{folder}/figures.json", partial(_figures, each)
        if each.gofer_pid > 0:
            yield f"{folder}/gofer.txt", partial(_process, each.gofer_pid)
    for method in ("Info", "Counters"):
        name = f"shim/{method.lower()}.json"
        yield name, partial(_asked, args, container, method)
    yield "shim/stacks.txt", partial(_shim_stacks, args, container)
    record = container.record
    if record is not None and record.shim_pid > 0:
        yield "shim/process.txt", partial(_process, record.shim_pid)
    if container.sandbox_pid > 0:
        yield "sentry/process.txt", partial(_process, container.sandbox_pid)
    for number, file in enumerate(_logs(args, family)):
        yield f"logs/{number}-{file.kind}-{file.writer}.txt", partial(_tail, file.path)


def _versions(container: StoredContainer) -> str:
    record, stored = container.record, container.stored
    text = _version() + f"uname: {' '.join(os.uname())}\n"
    if record is not None:
        text += f"runsc: {record.binary}\nflags: {output.dumps(dict(record.flags))}"
    if stored is not None:
        text += f"release: {stored.release}\n"
    return text


def _doctor(args: argparse.Namespace) -> str:
    from runtime.cli import doctor

    findings = doctor.examine(doctor.gather(args))
    return "".join(f"{f.level} {f.check}: {f.text} {f.advice}\n" for f in findings)


def _options(args: argparse.Namespace) -> str:
    path, _ = settings.document(args)
    data = files.read_bounded(path, 1 << 20, follow=True) if path else None
    return f"# {path or 'no file'}\n{(data or b'').decode('utf-8', 'replace')}"


def _texts(*paths: str) -> str:
    text = ""
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(1 << 20).decode("utf-8", "replace")
        except OSError as error:
            data = f"{reason(error)}\n"
        text += f"==> {path} <==\n{data}\n"
    return text


def _process(pid: int) -> str:
    text = _texts(*(f"/proc/{pid}/{name}" for name in _PROC))
    try:
        for thread in sorted(os.listdir(f"/proc/{pid}/task"), key=int)[:256]:
            text += _texts(f"/proc/{pid}/task/{thread}/stack")
    except OSError as error:
        text += f"{reason(error)}\n"
    return text


def _state(container: StoredContainer) -> str:
    found = show.describe(container)
    found["annotations"] = redacted.spec({"annotations": found["annotations"]})["annotations"]
    return output.dumps(found, indent=2)


def _record(container: StoredContainer) -> str:
    record = container.record
    if record is None:
        return "none: not made by the shim\n"
    values = {
        name: value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
        for name, value in ((name, getattr(record, name)) for name in record._fields)
    }
    return output.dumps(values, indent=2)


def _config(container: StoredContainer, specs: dict[str, dict[str, Any]]) -> str:
    raw = specs.get(container.id)
    if raw is None:
        container.spec  # noqa: B018 raises what is wrong with it
    return output.dumps(redacted.spec(raw or {}), indent=2)


def _ps(container: StoredContainer) -> str:
    rows = [(p.uid, p.pid, p.ppid, p.threads, p.cpu_time) for p in container.processes(_TIMEOUT)]
    return output.table(("UID", "PID", "PPID", "THREADS", "TIME"), rows)


def _figures(container: StoredContainer) -> str:
    return output.dumps(show.stats_json(container.event(_TIMEOUT)), indent=2)


def _asked(args: argparse.Namespace, container: StoredContainer, method: str) -> str:
    return output.dumps(dict(_ask(args, container, method)), indent=2)


def _ask(args: argparse.Namespace, container: StoredContainer, method: str) -> Any:
    address = container.record.shim_address if container.record is not None else ""
    if not address or args.ask_debug is None:
        raise InvalidRequest("shim", "there is none")
    return args.ask_debug(address, method, {}, _TIMEOUT)


def _shim_stacks(args: argparse.Namespace, container: StoredContainer) -> str:
    text = ""
    for thread in _ask(args, container, "Stacks").get("threads") or []:
        text += f"{thread.get('name')}\n"
        text += "".join(f"    {line}\n" for line in thread.get("stack") or [])
    return text


def _logs(args: argparse.Namespace, family: list[StoredContainer]) -> list[logs.LogFile]:
    found = {}
    for each in family:
        try:
            for file in logs.find(each, logs.patterns(args)):
                found[file.path] = file
        except RuntimeFault:
            continue
    return list(found.values())


def _tail(path: str) -> str:
    fd = logs._open(path)
    try:
        size = os.fstat(fd).st_size
        start = max(size - MAX_LOG, 0)
        data = b""
        while chunk := os.pread(fd, 1 << 20, start + len(data)):
            data += chunk
            if len(data) >= 2 * MAX_LOG:
                break  # it grows as it is read
    finally:
        os.close(fd)
    head = f"# the last {MAX_LOG} bytes of {path}\n" if start else f"# {path}\n"
    # Not from the middle of a line: what is left out is found by lines.
    if start:
        data = data.partition(b"\n")[2]
    return head + data.decode("utf-8", "replace")
