"""Pods that live and die through CRI, several at a time, while somebody kills what runs them.

Besides, shims are asked to become the installed version at random moments, which nobody may notice.

Each pod's life comes from the seed and its number (`soak_plan`); when a strike falls depends on
the machine.  What is checked is what a kubelet and its user rely on: every call is answered in its
time, a pod that nobody struck does all that was asked, exit codes are the containers' own, logs are
whole, events are in order, each pod can be removed, and nothing of it is left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Api, Events, Refused
from integration.harness.host import footprint
from integration.harness.nodes.pods import NAMESPACE, Pod, PodNode
from integration.harness.soak import soak_checks
from integration.harness.soak.soak_plan import CONTAINERD, VICTIMS, Part, Plan, plan

#: Seconds in which any call has to be answered, and a pod has to be removed without a trace.
CALL, REMOVAL = 60, 60
#: Seconds in which a container that ends by itself, or is asked to, has ended.
_END = 60
_GRACE = 30
#: What a strike waits for if it is not there yet.
_VICTIM = 2.0
_DEADLINE, _NOT_FOUND, _UNAVAILABLE = 4, 5, 14
#: Exit codes by which CRI says that it doesn't know, and that a container never ran.
_UNKNOWN, _NEVER = 255, 128
#: How many pods are begun before the machine is looked at as a whole.
BATCH = 40


class CutOff(Exception):
    """The daemon died during a call that can't be made twice."""


class Soak:
    """One run on one node, which has been started.  `run` may be called once."""

    def __init__(
        self,
        node: PodNode,
        seed: int,
        *,
        lanes: int = 4,
        kills: bool = True,
        upgrades: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.node, self.seed = node, seed
        self.victims = (VICTIMS if node.gvisor else VICTIMS[:1]) if kills else ()
        self.upgrades = upgrades and node.gvisor
        self.findings: list[str] = []
        self.count: Counter[str] = Counter()
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.stopping = False
        self._say = say
        self._lanes = lanes
        self._api = Api(node.daemon)
        self._lock = threading.Lock()  # guards findings, count, took
        self._up = threading.Event()
        self._up.set()
        #: One recording per life of the daemon, the last ones only.
        self._events: list[Events] = []
        self._daemon_lock = threading.Lock()  # guards _events, generation and the daemon's life
        self.generation = 0
        self._listen()

    # -- the run ----------------------------------------------------------------------------

    def run(self, pods: int, first: int = 0) -> None:
        """Have pods number `first` and following live; findings are said at once, and kept."""
        began = time.monotonic()
        with ThreadPoolExecutor(self._lanes) as lanes:
            for base in range(first, first + pods, BATCH):
                numbers = range(base, min(base + BATCH, first + pods))
                for _ in lanes.map(self._live, numbers):
                    pass
                self._look_around()
                done = numbers[-1] + 1 - first
                rate = done / (time.monotonic() - began)
                self._say(
                    f"{time.strftime('%H:%M:%S')} {done} of {pods} pods, {rate:.2f}/s,"
                    f" {self._struck} kills, {len(self.findings)} findings"
                )
                if self.stopping:
                    break

    def close(self) -> None:
        for events in self._events:
            events.__exit__()
        self._api.close()

    @property
    def _struck(self) -> int:
        return sum(n for what, n in self.count.items() if what.startswith("killed "))

    def summary(self) -> list[str]:
        """What was done and seen, one thing a line."""
        lines = [f"{self.count[what]:8} {what}" for what in sorted(self.count)]
        for phase, took in self.took.items():
            lines.append(
                f"{phase}: median {statistics.median(took):.2f} s, longest {max(took):.2f} s"
            )
        log = self.node.daemon.log_tail(10**8)
        for end in ("done", "refused", "failed"):
            said = re.findall(rf'upgrade\.{end}(?:.* why="([^"]*)")?', log)
            lines.append(f"{len(said):8} upgrades of a shim {end}")
            for why, count in Counter(filter(None, said)).most_common():
                lines.append(f"{count:8}   {why}")
        for said in re.findall(r'detail="(sentry panicked: [^"]*)"', log):
            lines.append(f"a {said}")  # it is gVisor's own end, and may be behind a finding
        return [*lines, f"{len(self.findings)} findings", *self.findings]

    def find(self, text: str) -> None:
        with self._lock:
            self.findings.append(text)
        self._say(f"FOUND {text}")

    def note(self, what: str, count: int = 1) -> None:
        with self._lock:
            self.count[what] += count

    def keep(self, phase: str, seconds: float) -> None:
        with self._lock:
            self.took[phase].append(seconds)

    def usual(self, phase: str) -> float:
        """How long a phase takes in the middle, in seconds."""
        with self._lock:
            return statistics.median(self.took[phase][-50:] or [0.3])

    def _live(self, number: int) -> None:
        if self.stopping:
            return
        try:
            Life(self, plan(self.seed, number, self.victims)).live()
        except Exception as failure:
            self.find(f"pod {number}: {type(failure).__name__}: {failure}")

    def _look_around(self) -> None:
        """Between batches nothing of any pod may stand."""
        with suppress(AssertionError):
            until(lambda: not self.node.leftovers(), 30, "nothing is left", 0.2)
        left = self.node.leftovers()
        if left and all("/io.containerd.runtime.v2.task/" in line for line in left):
            # containerd keeps a bundle that no call can reach until it starts anew.
            self.note("bundles that containerd kept until its next start", len(left))
            self.kill_daemon(signal.SIGTERM)
        if self.count["killed containerd"]:
            self._excuse_the_killed()
        try:
            self.node.assert_clean(10)
        except AssertionError as failure:
            self.find(f"after a batch: {failure}")

    def _excuse_the_killed(self) -> None:
        """What a containerd leaves that was killed, and no shim could take away."""
        # It hides a bundle that it is about to remove, and never looks there again.
        bundles = self.node.daemon.state / "io.containerd.runtime.v2.task" / NAMESPACE
        for path in bundles.glob(".*"):
            self.note("bundles that a containerd that was killed left hidden")
            shutil.rmtree(path)
        # It forgets a network that was just being set up.
        if self.node.network.leases():
            self.note("networks that a containerd that was killed forgot")
            self.node.network.disconnect()

    # -- the daemon -------------------------------------------------------------------------

    def kill_daemon(self, how: int = signal.SIGKILL) -> None:
        """Kill the daemon and start it again; calls that fail meanwhile say so to nobody."""
        with self._daemon_lock:
            self._up.clear()
            self.generation += 1
            if how == signal.SIGKILL:
                self.node.daemon.kill()
            else:
                self.node.daemon.stop()
            self._listen()
            self.node.daemon.start(60)
            self.node.wait_ready()
            self._up.set()

    def wait_up(self) -> None:
        if not self._up.wait(120):
            raise AssertionError("the daemon did not come back")

    def _listen(self) -> None:
        while len(self._events) > 3:
            self._events.pop(0).__exit__()
        self._events.append(self._api.events().__enter__())

    def told(self, container: str) -> list[soak_checks.Told]:
        """Topic and process of a container's events so far."""
        events = list(self._events)
        found = []
        for topic, event in (each for part in events for each in part.of(container)):
            process = getattr(event, "exec_id", "") or getattr(event, "id", "") or container
            found.append((topic, process))
        return found


class Life:
    """One pod from its first call to the last trace of it."""

    def __init__(self, soak: Soak, made: Plan) -> None:
        soak.wait_up()
        self.soak, self.plan, self.node = soak, made, soak.node
        self.name = f"soak-{soak.seed}-{made.number:06d}"
        self.pod: Pod = self.node.prepare(name=self.name)
        self.volume = self.node.daemon.folder / "volumes" / self.name
        self.containers: dict[str, Part] = {}
        self._started: set[str] = set()
        self._codes: dict[str, int] = {}
        self._codes_before: dict[str, int] = {}
        self._asked: set[str] = set()
        self._generation = soak.generation
        self._hit = ""
        self._struck = threading.Event()
        self._striker: threading.Timer | None = None
        self._upgrades = list(made.upgrades) if soak.upgrades else []
        self._upgraders: list[threading.Timer] = []

    # -- living -----------------------------------------------------------------------------

    def live(self) -> None:
        self.volume.mkdir(parents=True)
        try:
            self._work()
            self.soak.note("pods that did all that was asked")
        except (Refused, CutOff, AssertionError) as failure:
            self._judge(failure)
        finally:
            if self._striker is not None:
                self._striker.join()
        self._remove()
        for upgrader in self._upgraders:
            upgrader.join()
        self._look_back()

    def _work(self) -> None:
        with self._phase("run pod"):
            self.pod.run(CALL)
        for part in self.plan.parts:
            with self._phase("create"):
                mount = {"container_path": "/mnt", "host_path": str(self.volume)}
                container = self.pod.create(*part.command, name=part.name, mounts=[mount])
                self.containers[container] = part
            with self._phase("start"):
                self._call("StartContainer", container_id=container)
                self._started.add(container)
        for container, part in self.containers.items():
            for code in part.execs:
                with self._phase("exec"):
                    self._exec(container, code)
        with self._phase("watch"):
            for container, part in self.containers.items():
                if part.kind != "waits":
                    self._wait_end(container)
                else:
                    self._wait_beat(container, part)
        if self.plan.stops:
            self._stop()
        if self.plan.removes:
            for container in self.containers:
                with self._phase("remove container"):
                    self._note_code(container)
                    self._again("RemoveContainer", container_id=container)

    def _stop(self) -> None:
        for container, part in self.containers.items():
            if part.kind == "waits":
                with self._phase("stop"):
                    self._asked.add(container)
                    self._again("StopContainer", container_id=container, timeout=_GRACE)
                    self._wait_end(container)

    def _exec(self, container: str, code: int) -> None:
        words = ["sh", "-c", f"echo out; echo err >&2; exit {code}"]
        done = self._call("ExecSync", container_id=container, cmd=words, timeout=CALL)
        seen = (done.exit_code, done.stdout, done.stderr)
        self.soak.note("execs")
        if seen != (code, b"out\n", b"err\n") and not self.disturbed:
            self.soak.find(f"{self.name}: exec gave {seen}, not {code}")

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        strike = self.plan.strike
        if strike and strike.phase == name and self._striker is None:
            delay = strike.share * self.soak.usual(name)
            self._striker = threading.Timer(delay, self._strike, [strike.victim, name])
            self._striker.start()
        for upgrade in [each for each in self._upgrades if each.phase == name]:
            self._upgrades.remove(upgrade)
            delay = upgrade.share * self.soak.usual(name)
            self._upgraders.append(threading.Timer(delay, self._upgrade))
            self._upgraders[-1].start()
        self.soak.wait_up()
        began = time.monotonic()
        yield
        if not self.disturbed:
            self.soak.keep(name, time.monotonic() - began)

    # -- calls ------------------------------------------------------------------------------

    @property
    def disturbed(self) -> bool:
        """Whether anybody was, or may have been, killed who had to do with this pod."""
        return self._struck.is_set() or self.soak.generation != self._generation

    def _call(self, method: str, **values: Any) -> Any:
        self.soak.wait_up()
        return self.node.call(method, CALL + 15, **values)

    def _again(self, method: str, **values: Any) -> Any:
        """A call that can be made again when the daemon died under it."""
        deadline = time.monotonic() + CALL
        while True:
            generation = self.soak.generation
            try:
                return self._call(method, **values)
            except Refused as refused:
                died = generation != self.soak.generation or refused.code == _UNAVAILABLE
                if not died or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _wait_end(self, container: str) -> None:
        def ended() -> bool:
            status = self._again("ContainerStatus", container_id=container).status
            return bool(status.state in (cri.EXITED, cri.UNKNOWN))

        until(ended, _END, f"{container[:12]} ended", 0.1)
        self._note_code(container)

    def _wait_beat(self, container: str, part: Part) -> None:
        """Until it has set its trap, or can't any more."""
        beats = self.volume / part.name

        def beaten() -> bool:
            status = self._again("ContainerStatus", container_id=container).status
            return beats.exists() or status.state != cri.RUNNING

        until(beaten, _END, f"{container[:12]} writes", 0.1)

    def _note_code(self, container: str) -> None:
        status = self._again("ContainerStatus", container_id=container).status
        if status.state == cri.EXITED:
            self._codes[container] = status.exit_code
            if not self.disturbed:
                self._codes_before[container] = status.exit_code

    def _judge(self, failure: Exception) -> None:
        """A failure is a finding unless somebody was killed, and a time-out always is one."""
        if self.soak.count["killed containerd"] and "snapshotter" in str(failure):
            # Its snapshotter trips over what it had half done when it was killed.
            self.soak.note("calls that failed for a killed containerd's snapshotter")
            return
        late = isinstance(failure, Refused) and failure.code == _DEADLINE
        if late or isinstance(failure, AssertionError) or not self.disturbed:
            told = f", {self._hit} was killed" if self._hit else ""
            self.soak.find(f"{self.name}: {failure}{told}")
        else:
            self.soak.note("pods whose work a kill cut off")

    # -- killing ----------------------------------------------------------------------------

    def _strike(self, victim: str, phase: str) -> None:
        if victim == CONTAINERD:
            self._hit = victim
            self.soak.kill_daemon()
            self.soak.note("killed containerd")
            return
        with suppress(AssertionError, OSError):
            pid = until(lambda: self._find(victim), _VICTIM, f"a {victim}")
            self._struck.set()
            os.kill(pid, signal.SIGKILL)
            self._hit = victim
            self.soak.note(f"killed {victim}")
            return
        self.soak.note(f"came too late, or too early, for its {victim}")

    def _upgrade(self) -> None:
        """As an operator's `pkill -HUP containerd-shim`: nobody may notice, whatever it hits."""
        with suppress(OSError):
            if shim := self._find("shim"):
                os.kill(shim, signal.SIGHUP)
                self.soak.note("upgrades asked for")

    def _find(self, victim: str) -> int:
        """The pid of a victim; 0 if there is none."""
        pod = self.pod.id or self._pod_on_disk()
        if not pod:
            return 0
        shim = next((p for p in self.node.shims() if pod in footprint.command_line(p)), 0)
        if victim == "shim" or not shim:
            return shim
        below = [(pid, footprint.command_line(pid)) for pid in footprint.descendants(shim)]
        if victim == "sentry":
            return next((p for p, w in below if "boot" in w and footprint.parent(p) == shim), 0)
        names = [pod] if victim == "root gofer" else list(self.containers)
        for pid, words in below:
            bundle = next((word for word in words if word.startswith("--bundle=")), "")
            if "gofer" in words and bundle.rpartition("/")[2] in names:
                return pid
        return 0

    def _pod_on_disk(self) -> str:
        """The pod's id before CRI has told it."""
        bundles = self.node.daemon.state / "io.containerd.runtime.v2.task" / NAMESPACE
        for path in bundles.glob("*/config.json"):
            try:
                annotations = json.loads(path.read_bytes()).get("annotations", {})
            except (OSError, ValueError):
                continue  # it is just being written, or removed
            if annotations.get("io.kubernetes.cri.sandbox-name") == self.name:
                return str(annotations.get("io.kubernetes.cri.sandbox-id", ""))
        return ""

    # -- the end ----------------------------------------------------------------------------

    def _remove(self) -> None:
        """As the kubelet does: again and again, until CRI knows nothing of the pod."""
        deadline = time.monotonic() + REMOVAL
        while pods := self._listed():
            try:
                for pod in pods:
                    with self._phase("stop pod"):
                        self._again("StopPodSandbox", pod_sandbox_id=pod)
                    self._note_codes(pod)
                    with self._phase("remove pod"):
                        self._again("RemovePodSandbox", pod_sandbox_id=pod)
            except Refused as refused:
                if refused.code == _DEADLINE or time.monotonic() > deadline:
                    raise
                if not self.disturbed:
                    self.soak.find(f"{self.name}: {refused}")
                self.soak.note("removals that had to be made again")
                time.sleep(0.3)
        if self._striker is not None:
            self._striker.join()

    def _listed(self) -> list[str]:
        pods = self._again("ListPodSandbox").items
        return [each.id for each in pods if each.metadata.name == self.name]

    def _note_codes(self, pod: str) -> None:
        found = self._again("ListContainers", filter={"pod_sandbox_id": pod}).containers
        for each in found:
            part = next(part for part in self.plan.parts if part.name == each.metadata.name)
            self.containers.setdefault(each.id, part)
            self._note_code(each.id)

    def _look_back(self) -> None:
        """All that can be said when the pod is gone."""
        for container, part in self.containers.items():
            self._check_code(container, part)
            self._check_log(container, part)
            self._check_events(container)
        self._check_leftovers()
        if not self.soak.findings:
            for path in self.volume.iterdir():
                path.unlink()
            self.volume.rmdir()

    @property
    def _ids(self) -> list[str]:
        return [self.pod.id, *self.containers]

    def _check_code(self, container: str, part: Part) -> None:
        code, before = self._codes.get(container), self._codes_before.get(container)
        if before not in (None, code):
            self._find_code(container, part, f"{code} after {before}")
        if code is None:
            if container in self._started:
                self.soak.note("containers that CRI told no exit code of")
            return
        self.soak.note("exit codes")
        own = part.code if part.kind != "waits" or container in self._asked else 137
        wanted = {own}
        if self.disturbed:
            wanted |= {part.code, 137, 143}
            if self._hit == "shim" or self.soak.generation != self._generation:
                wanted.add(_UNKNOWN)
            if container not in self._started:
                wanted.add(_NEVER)
        if code not in wanted:
            self._find_code(container, part, f"{code}, not {sorted(wanted)}")
        elif code == _UNKNOWN:
            self.soak.note(f"exit codes that CRI doesn't know ({self._hit or 'containerd'} killed)")

    def _find_code(self, container: str, part: Part, text: str) -> None:
        self.soak.find(
            f"{self.name}: {container[:12]}, which {part.kind}, exited with {text}"
            f" ({self._hit or 'nobody'} was killed)"
        )

    def _check_log(self, container: str, part: Part) -> None:
        path = self.pod.logs / f"{part.name}-0.log"
        reached = container in self._started and self._codes.get(container) == part.code
        whole = reached and (part.kind != "dies" or not self.disturbed)
        whole = whole and (part.kind != "waits" or container in self._asked)
        beats = self.volume / part.name
        # CRI drops the output of a container whose start failed.
        counts = container in self._started and beats.exists()
        written = len(beats.read_text().splitlines()) if counts else 0

        def flaws() -> list[str]:
            text = path.read_text() if path.exists() else ""
            return soak_checks.log_flaws(part, text, written, whole)

        with suppress(AssertionError):
            until(lambda: not flaws(), 5, "the log is whole", 0.1)
        found = flaws()
        self.soak.note("lines that were logged", written)
        if self.soak.generation != self._generation and found:
            # What containerd had read and not yet written is lost with it.
            self.soak.note("logs with a gap, where containerd was killed")
            return
        for flaw in found:
            self.soak.find(f"{self.name}: {flaw} ({self._hit or 'nobody'} was killed)")
        if not found:
            self.soak.note("logs that were whole")

    def _check_events(self, container: str) -> None:
        same = self.soak.generation == self._generation
        whole = same and self._hit != "shim"

        def flaws() -> list[str]:
            told = self.soak.told(container)
            return soak_checks.event_flaws(container, told, whole)

        with suppress(AssertionError):
            until(lambda: not flaws(), 5, "the events have come", 0.1)
        found = flaws()
        if whole and container in self._started and not self.soak.told(container):
            found.append(f"no event of {container[:12]}")
        for flaw in found:
            self.soak.find(f"{self.name}: {flaw} ({self._hit or 'nobody'} was killed)")
        self.soak.note("events", len(self.soak.told(container)))

    def _check_leftovers(self) -> None:
        names = [*self._ids, self.name]

        def left() -> list[str]:
            lines = soak_checks.mentions(self.node.leftovers(), names)
            if self.disturbed:  # containerd keeps some until its next start; see `_look_around`
                lines = [each for each in lines if "/io.containerd.runtime.v2.task/" not in each]
            return lines

        with suppress(AssertionError):
            until(lambda: not left(), 20, "nothing is left", 0.3)
        for line in left():
            self.soak.find(f"{self.name}: left {line} ({self._hit or 'nobody'} was killed)")
