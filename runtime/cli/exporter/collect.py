"""One look at all sandboxes of the node: files, the host's cgroups and processes, sentries, shims.

Nothing is slowed by a look: a sentry is asked on one connection, all at the same time and none for
longer than :data:`TIMEOUT`; one that didn't answer is left alone for a while, as its queue of
connections has room for sixteen, which its shim needs.  What can't be read is left out.
"""

from __future__ import annotations

import os
import resource
import time

from runtime.base.errors import RuntimeFault
from runtime.base.record import Record
from runtime.cgroups import factory
from runtime.cgroups.counters import KeptFiles, read_text
from runtime.cgroups.metrics import CpuClock, HostStats, SentryStats, Use, use
from runtime.cli import find
from runtime.cli.exporter.asking import Rests, converse
from runtime.host import forkservers
from runtime.runsc import control_results, urpc
from runtime.state.loaded import StoredContainer
from runtime.state.lock import RECORD, STATE, file_name, list_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from runtime.cgroups.cgroup import Cgroup
    from runtime.cli.exporter.asking import Conversation, Exchange
    from runtime.host.pids import Foreign
    from runtime.runsc.control import Control

    #: Asks a shim, by its address, a method of its debug socket; the connection is to be closed.
    PostDebug = Callable[[str, str], Exchange]

#: Seconds in which sentries and shims have to answer.  A busy node gives an honest one its turn
#: late, and a scraper waits for ten seconds, unless it was told otherwise.
TIMEOUT = 2.5
#: Bytes of a sentry's reply.
MAX_REPLY = 2 << 20
#: Files of a sandbox's cgroup, at most.
_KEPT_FILES = 10
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: States of proc(5) in which a process answers nobody.
_STILL = "TtZX"


class ContainerLook(Record):
    """One container that lives.  ``metrics`` None: nobody could tell."""

    id: str
    name: str
    metrics: Use | None = None


class SandboxLook(Record):
    """One sandbox.  ``sentry`` and ``shim`` are empty, or say why there is no answer."""

    id: str
    namespace: str
    pod: str
    containerd_namespace: str
    containers: tuple[ContainerLook, ...] = ()
    #: How many of its containers are in which state.
    states: Mapping[str, int] = {}
    release: int = 0
    sentry: str = ""
    shim: str = ""
    #: Whether a shim serves it at all.
    has_shim: bool = True
    host: HostStats | None = None
    networks: Sequence[Any] = ()
    #: The sentry's own metrics, as it has them.
    exported: Sequence[Any] = ()
    counters: Mapping[str, Any] = {}
    #: Resident bytes by role: sentry, gofer, shim.
    resident: Mapping[str, int] = {}


class NodeLook(Record):
    """All of them, and what can't be read."""

    sandboxes: tuple[SandboxLook, ...]
    problems: tuple[str, ...]
    fork_servers: tuple[int, ...]
    seconds: float


class _Known:
    """A container as its files have it, and ``marks`` by which a change of them shows."""

    def __init__(self, marks: object, stored: StoredContainer) -> None:
        self.marks, self.stored = marks, stored
        self.annotations = _annotations(stored)
        self.status = _written_status(stored)
        self.memory_limit = _memory_limit(stored)
        #: Pids and start times, once they were found; a gofer's is None if it has none.
        self.sentry: tuple[int, int] | None = None
        self._gofer: tuple[int, int] | None = None
        self._looked_for_gofer = False
        self._control: Control | None = None

    @property
    def control(self) -> Control:
        """Of its sandbox's sentry."""
        if self._control is None:
            self._control = self.stored.control()
        return self._control

    def gofer(self) -> tuple[int, int] | None:
        """Its gofer, which another one can only be after a change of the files."""
        if not self._looked_for_gofer:
            self._gofer = _identity(self.stored.gofer_process())
            self._looked_for_gofer = True
        return self._gofer


class _Found:
    """A sandbox that is being looked at."""

    def __init__(self, root: str, members: list[_Known]) -> None:
        self.root, self.members = root, members
        self.family = [each.stored for each in members]
        self.head = next((each for each in members if each.stored.is_root), members[0])
        self.first = self.head.stored
        self.key = (root, self.first.sandbox_id)
        self.pid = -1
        self.state = "X"
        self.resident = 0
        self.sentry_answer = self.shim_answer = ""
        self.stats: dict[str, SentryStats] = {}
        self.networks: Sequence[Any] = ()
        self.exported: Sequence[Any] = ()
        self.counters: Mapping[str, Any] = {}
        self.host: HostStats | None = None

    @property
    def shim_address(self) -> str:
        record = self.first.record
        return record.shim_address if record is not None else ""


class Collector:
    """Looks again and again, and remembers what doesn't change.  For one thread at a time."""

    def __init__(
        self,
        args: argparse.Namespace,
        post_debug: PostDebug | None,
        *,
        sentry_metrics: str = "",
    ) -> None:
        """``sentry_metrics`` is a regular expression of Go's for names, ``-`` for none at all."""
        self._args = args
        self._post_debug = post_debug
        self._only = sentry_metrics
        self._cgroup_root = factory.CgroupRoot()
        self._known: dict[tuple[str, str, str], _Known] = {}
        self._cgroups: dict[tuple[int, int], tuple[Cgroup, KeptFiles | None]] = {}
        # Half of what the process may open; a sandbox's sentry and shim are asked besides.
        self._most_kept = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 // _KEPT_FILES
        self._clock = CpuClock()
        self._servers: dict[str, int] = {}
        self._rests = Rests()

    def close(self) -> None:
        """Let go of what is kept open."""
        for key in tuple(self._cgroups):
            self._forget_cgroup(key)

    def look(self, timeout: float = TIMEOUT) -> NodeLook:
        """One look, with so many seconds for sentries and shims to answer.

        Raises InvalidRequest for what the command line says.
        """
        began = time.monotonic()
        found, problems = self._find()
        alive = [each for each in found if self._is_alive(each)]
        self._ask(alive, began + timeout)
        for each in alive:
            each.host = self._host(each)
        looks = tuple(self._described(each) for each in alive)
        self._forget(alive)
        return NodeLook(
            sandboxes=looks,
            problems=tuple(problems),
            fork_servers=self._fork_servers(),
            seconds=time.monotonic() - began,
        )

    # -- files -----------------------------------------------------------------------------

    def _find(self) -> tuple[list[_Found], list[str]]:
        problems: list[str] = []
        families: dict[tuple[str, str], list[_Known]] = {}
        seen: dict[tuple[str, str, str], _Known] = {}
        for root in find.roots(self._args):
            try:
                ids = list_ids(root)
            except RuntimeFault as fault:
                problems.append(str(fault))
                continue
            for container_id, sandbox_id in ids:
                key = (root, container_id, sandbox_id)
                try:
                    entry = self._load(key)
                except RuntimeFault as fault:
                    problems.append(str(fault))
                    continue
                if entry is not None:
                    seen[key] = entry
                    families.setdefault((root, sandbox_id), []).append(entry)
        self._known = seen
        return [_Found(root, family) for (root, _), family in sorted(families.items())], problems

    def _load(self, key: tuple[str, str, str]) -> _Known | None:
        """The container, read again only if its files are others than before."""
        root, container_id, sandbox_id = key
        marks = tuple(
            _mark(os.path.join(root, file_name(container_id, sandbox_id, ending)))
            for ending in (STATE, RECORD)
        )
        known = self._known.get(key)
        if known is not None and known.marks == marks:
            return known
        some = StoredContainer._read(root, container_id, sandbox_id)
        return None if some is None else _Known(marks, some)

    def _is_alive(self, found: _Found) -> bool:
        known = found.head.sentry
        if known is None:
            known = found.head.sentry = _identity(found.first.sandbox_process())
        process = _process(*known) if known is not None else None
        if process is None:
            return False
        found.pid = process.pid
        found.state, found.resident = process.state, process.resident
        # That a process's first thread has ended says nothing of the others.
        return process.state not in "ZX" or _identity(found.first.sandbox_process()) is not None

    # -- asking ----------------------------------------------------------------------------

    def _ask(self, sandboxes: Sequence[_Found], deadline: float) -> None:
        def everybody() -> Iterator[Conversation]:
            for each in sandboxes:
                yield self._ask_sentry(each)
                if self._post_debug is not None and each.shim_address:
                    yield self._ask_shim(each, self._post_debug)

        converse(everybody(), deadline)

    def _ask_sentry(self, found: _Found) -> Conversation:
        if found.state in _STILL:
            found.sentry_answer = "stopped" if found.state in "Tt" else "ended"
            return
        if self._rests.is_resting(found.key):
            found.sentry_answer = "no answer before"
            return
        connection = None
        try:
            control = found.head.control
            questions = [
                (each.stored.id, *control.event_request(each.stored.id))
                for each in found.members
                if each.status in ("running", "paused")
            ]
            if self._only != "-":
                questions.append(("", "Metrics.Export", {"only_metrics": self._only}))
            for container_id, method, argument in questions:
                if connection is None:
                    connection = control.post_request(method, argument, MAX_REPLY)
                else:
                    connection.post(method, argument)
                reply = yield connection
                if not reply.success:
                    continue  # it has just ended, was not started yet, or is of an old release
                if container_id:
                    # All have the sandbox's interfaces.
                    wanted = not found.networks
                    told = control_results.stats(reply.result, networks=wanted)
                    found.stats[container_id] = told
                    found.networks = found.networks or told.networks
                else:
                    found.exported = control_results.exported_metrics(reply.result)
            self._rests.answered(found.key)
        except (RuntimeFault, urpc.Disconnected, urpc.ProtocolError) as fault:
            found.sentry_answer = _why(fault)
            if isinstance(fault, RuntimeFault):
                self._rests.missed(found.key)
        finally:
            if connection is not None:
                connection.close()

    def _ask_shim(self, found: _Found, post: PostDebug) -> Conversation:
        exchange: Any = None
        try:
            exchange = post(found.shim_address, "Counters")
            found.counters = yield exchange
        except (RuntimeFault, OSError) as fault:
            found.shim_answer = _why(fault)
        finally:
            if exchange is not None:
                exchange.close()

    # -- the host --------------------------------------------------------------------------

    def _host(self, found: _Found) -> HostStats | None:
        record = found.first.record
        started = record.boot.start_time if record is not None and record.boot is not None else 0
        key = (found.pid, started)
        try:
            if key not in self._cgroups:
                kept = KeptFiles() if len(self._cgroups) < self._most_kept else None
                self._cgroups[key] = factory.of_process(found.pid, self._cgroup_root), kept
            cgroup, kept = self._cgroups[key]
            return cgroup.stats(brief=kept.read if kept is not None else read_text)
        except (RuntimeFault, OSError):
            self._forget_cgroup(key)
            return None

    def _forget_cgroup(self, key: tuple[int, int]) -> None:
        _, kept = self._cgroups.pop(key, (None, None))
        if kept is not None:
            kept.close()

    def _fork_servers(self) -> tuple[int, ...]:
        """The resident memory of each.  One is asked for its pid once, as it forks to answer."""
        pids: dict[str, int] = {}
        sizes: list[int] = []
        for path in forkservers.sockets():
            pid = self._servers.get(path)
            size = _resident(pid) if pid is not None else None
            if size is None:
                try:
                    pid = forkservers.ask(path).pid
                except (RuntimeFault, OSError):
                    continue  # it ends just now, or hangs
                size = _resident(pid)
            if pid is not None and size is not None:
                pids[path] = pid
                sizes.append(size)
        self._servers = pids
        return tuple(sizes)

    def _described(self, found: _Found) -> SandboxLook:
        annotations = found.head.annotations
        space = find.namespace_of(found.root)
        pod = annotations.get("io.kubernetes.cri.sandbox-name", "")
        states: dict[str, int] = {}
        for each in found.members:
            states[each.status] = states.get(each.status, 0) + 1
        return SandboxLook(
            id=found.first.sandbox_id,
            namespace=annotations.get("io.kubernetes.cri.sandbox-namespace", "") or space,
            pod=pod or found.first.sandbox_id,
            containerd_namespace=space,
            containers=tuple(self._containers(found)),
            states=states,
            release=found.first.stored.release if found.first.stored is not None else 0,
            sentry=found.sentry_answer,
            shim=found.shim_answer,
            has_shim=bool(found.shim_address),
            host=found.host,
            networks=found.networks,
            exported=found.exported,
            counters=found.counters,
            resident=_residents(found),
        )

    def _containers(self, found: _Found) -> Iterator[ContainerLook]:
        """Those that live; one that has ended would be counted beside its successor."""
        cpu: dict[str, int] = {}
        for container_id, told in found.stats.items():
            if told.own_cpu_ns is not None:
                cpu[container_id] = told.own_cpu_ns
        for each in found.members:
            if each.status not in ("created", "running", "paused"):
                continue
            container_id, annotations = each.stored.id, each.annotations
            name = annotations.get("io.kubernetes.cri.container-name", "")
            if not name and annotations.get("io.kubernetes.cri.container-type") != "sandbox":
                name = container_id
            stats = found.stats.get(container_id)
            metrics = None
            if stats is not None:
                metrics = use(
                    found.host,
                    stats,
                    cpu if stats.own_cpu_ns is not None else stats.cpu_ns,
                    container_id,
                    is_root_only=len(found.family) == 1,
                    memory_limit=each.memory_limit,
                    clock=self._clock,
                )
            yield ContainerLook(id=container_id, name=name, metrics=metrics)

    def _forget(self, alive: Sequence[_Found]) -> None:
        """What was remembered of those that are gone."""
        keys = {each.key for each in alive}
        self._rests.keep(keys)
        pids = {each.pid for each in alive}
        for key in tuple(self._cgroups):
            if key[0] not in pids:
                self._forget_cgroup(key)
        ids = {container_id for _, container_id, _ in self._known}
        for container_id in self._clock.known():
            if container_id not in ids:
                self._clock.forget(container_id)


def _why(fault: Exception) -> str:
    """In a word or two: it becomes a label, of which there should be few."""
    return type(fault).__name__


def _mark(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _written_status(container: StoredContainer) -> str:
    return container.stored.status if container.stored is not None else "creating"


def _spec(container: StoredContainer) -> Mapping[str, Any]:
    return container.stored.spec if container.stored is not None else {}


def _annotations(container: StoredContainer) -> Mapping[str, str]:
    """Those of its spec that are texts."""
    found = _spec(container).get("annotations")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _memory_limit(container: StoredContainer) -> int | None:
    """Its own limit; None where there is none, or an update without a file has changed it."""
    if container.is_root:
        return None
    record = container.record
    resources: Any = record.resources if record is not None else None
    if resources is None:
        linux = _spec(container).get("linux")
        resources = linux.get("resources") if isinstance(linux, dict) else None
    memory = resources.get("memory") if isinstance(resources, dict) else None
    limit = memory.get("limit") if isinstance(memory, dict) else None
    return limit if type(limit) is int and limit > 0 else None


class _Process(Record):
    """What proc(5) says: the letter of its state, and resident bytes."""

    pid: int
    state: str
    resident: int


def _identity(process: Foreign | None) -> tuple[int, int] | None:
    """Pid and start time, which name a process for good; None if it has ended.  Closes it."""
    if process is None:
        return None
    with process:
        return None if process.wait_gone(0) else (process.pid, process.start_time)


def _process(pid: int, started: int | None = None) -> _Process | None:
    """The process with that number, or None; with ``started`` only the one that began then."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.read(fd, 4096)
        finally:
            os.close(fd)
        fields = line[line.rindex(b")") + 2 :].split(None, 22)
        if started is not None and int(fields[19]) != started:
            return None
        return _Process(pid=pid, state=chr(fields[0][0]), resident=int(fields[21]) * _PAGE)
    except (OSError, ValueError, IndexError):
        return None


def _resident(pid: int) -> int | None:
    process = _process(pid)
    return process.resident if process is not None else None


def _residents(found: _Found) -> dict[str, int]:
    sizes = {"sentry": found.resident}
    for each in found.members:
        gofer = each.gofer()
        process = _process(*gofer) if gofer is not None else None
        if process is not None:
            sizes["gofer"] = sizes.get("gofer", 0) + process.resident
    pid = found.counters.get("pid")
    shim = _resident(pid) if type(pid) is int and pid > 0 else None
    if shim is not None:
        sizes["shim"] = shim
    return sizes
