"""Installing, upgrading and uninstalling, step by step; a step that fails undoes those before it.

Owns the order: what can fail without a trace comes first, a sandbox is started before anything is
registered, and the daemon is restarted last, if its configuration changed at all.
"""

from __future__ import annotations

import os

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.base.record import Record
from runtime.cli import config_snippets
from runtime.cli.install import distros, runsc_source, selftest, state, toml_edit, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from runtime.cli.install.node import Node

_LOCK = "/run/gvisor-shim-install.lock"
_LOCK_TIMEOUT = 600.0
_RESTART_TIMEOUT = 300.0
_DUMP_TIMEOUT = 60.0
_PATIENCE = 30.0
_MOUNTED_NOEXEC = (
    "programs can't be run from {} (mounted noexec): name another folder with --prefix"
)
_READ_ONLY = "{} can't be written to (mounted read-only): name another folder with --prefix"


class InstallRequest(Record):
    """What is asked for."""

    name: str = "gvisor"
    distro: str = "auto"
    runsc: str = ""
    prefix: str = versions.PREFIX
    dry_run: bool = False
    restart: bool = True
    upgrade: bool = False
    self_test: bool = True


class Undo:
    """What has to be done if a later step fails, last first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def add(self, words: str, step: Callable[[], object]) -> None:
        self._steps.append((words, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        for words, step in reversed(self._steps):
            self._say(f"undone: {words}")
            try:
                step()
            except (RuntimeFault, OSError) as fault:
                self._say(f"this failed: {fault}")


class Lock:
    """One installation at a time on a node."""

    def __init__(self, node: Node) -> None:
        self._node, self._fd = node, -1

    def __enter__(self) -> None:
        self._node.make_folder(os.path.dirname(_LOCK))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._node.path(_LOCK), flags, 0o600)
        files.lock(self._fd, "another installation", _LOCK_TIMEOUT)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def options_path(name: str) -> str:
    return f"/etc/containerd/{name}.toml"


# -- asking the daemon --------------------------------------------------------------------------


def dump(node: Node, place: distros.Registration) -> dict[str, Any]:
    """All of the daemon's configuration, as it would read it now.  Raises Failed."""
    words = (place.daemon, "--config", place.config, "config", "dump")
    status, text = node.run(*words, timeout=_DUMP_TIMEOUT)
    if status:
        last = " ".join(text.split())[-400:]
        raise Failed(f"containerd refuses its configuration {place.config}: {last}")
    # It logs to the same stream: what it prints begins with a key or a table.
    lines = text.splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith(("time=", "INFO", "WARN", "DEBU"))]
    return toml_edit.parse(f"the output of {place.daemon} config dump", "".join(lines))


def _can_ask(node: Node, place: distros.Registration) -> bool:
    return bool(place.daemon and place.config) and node.exists(place.config)


def compare(before: dict[str, Any], after: dict[str, Any], name: str, release: str) -> None:
    """Raise Failed if anything but the runtime differs: nothing else of the node's may change."""
    old, new = distros.runtimes(before, release), distros.runtimes(after, release)
    lost = sorted(set(old) - set(new) - {name})
    if lost:
        raise Failed(f"containerd would lose its runtimes {', '.join(lost)}")
    for document in (before, after):
        document.pop("imports", None)
        distros.runtimes(document, release).clear()
    if different := _difference(before, after):
        raise Failed(f"containerd's setting {different} would change")


def _difference(one: Any, other: Any, path: str = "") -> str:
    if isinstance(one, dict) or isinstance(other, dict):
        # A table of nothing is as good as none.
        one, other = (
            each if isinstance(each, dict) else {"": each} if each else {} for each in (one, other)
        )
        for key in sorted({*one, *other}):
            if found := _difference(one.get(key), other.get(key), f"{path}.{key}"):
                return found
        return ""
    return "" if one == other or (not one and not other) else path.lstrip(".")


# -- install ------------------------------------------------------------------------------------


class Installation:
    """One run of ``install`` or ``upgrade`` on a node."""

    def __init__(self, node: Node, request: InstallRequest, say: Callable[[str], None]) -> None:
        self._node, self._request, self._say = node, request, say
        self._versions = versions.Versions(node, request.prefix)
        #: Folders above the versions' that were made for them, innermost first.
        self._made: list[str] = []

    def run(self) -> None:
        """Raises RuntimeFault or OSError; then nothing is left of it."""
        if self._request.dry_run:
            self._run()
            return
        with Lock(self._node):
            self._run()

    def _run(self) -> None:
        node, request, known = self._node, self._request, self._versions
        bundle = versions.own_bundle()
        self._require_place()
        old = state.load(node, request.prefix, request.name)
        if request.upgrade and old is None:
            raise Unsupported(f"no runtime {request.name} is installed here: use gvctl install")
        wanted = request.distro
        if wanted == "auto" and old is not None:
            wanted = old.distro
        distro = distros.detect(node, wanted)
        place = distros.place(node, distro, request.name)
        earlier = ""
        if old is not None and old.copied_runsc and known.current():
            earlier = node.path(known.runsc_of(known.current()))
        runsc = runsc_source.find(node, request.runsc, earlier)
        version = known.name_of(bundle, runsc)
        binary = runsc.system or f"{known.link}/runsc/runsc"
        shim = f"{known.link}/{versions.SHIM}"
        options = options_path(request.name)
        changes = distros.changes(node, place, request.name, shim, options)
        texts = self._options(options, binary, old)
        before = self._before(place, old, shim)
        settled = known.current() == version
        self._tell(place, bundle, version, runsc, {**changes, **texts})
        if request.dry_run:
            return
        with Undo(self._say) as undo:
            self._copy(undo, version, bundle, runsc)
            if request.self_test:
                self._self_test(version, runsc, binary, texts.get(options) or node.read(options))
            self._register(undo, place, old, {**texts, **changes}, version, runsc)
            if before is not None or _can_ask(node, place):
                self._check(place, before, shim)
            if changes:
                self._restart(undo, place)
        for gone in known.clean():
            self._say(f"removed version {gone}, which nothing uses any more")
        kept = sorted(set(known.every()) - {known.current()})
        for each in kept:
            self._say(f"kept version {each}: processes of pods run from it")
        if not changes and not texts:
            self._say(
                "all of it was there already, nothing was restarted"
                if settled
                else "the configuration is the same, nothing was restarted"
            )

    def _require_place(self) -> None:
        flags = self._node.file_system_flags(self._request.prefix)
        if flags & os.ST_RDONLY:
            raise Unsupported(_READ_ONLY.format(self._request.prefix))
        if flags & os.ST_NOEXEC:
            raise Unsupported(_MOUNTED_NOEXEC.format(self._request.prefix))

    def _options(self, path: str, binary: str, old: state.Installed | None) -> dict[str, str]:
        """The options file, unless the operator has one.  Raises Failed if that names another."""
        text = self._node.read(path)
        wanted = config_snippets.options_snippet(binary)
        if text is None:
            return {path: wanted}
        if old is not None and path in old.files and state.digest(text) == old.files[path][0]:
            return {} if text == wanted else {path: wanted}
        named = toml_edit.parse(path, text).get("binary_name", "runsc")
        if named != binary and (self._request.runsc or named != "runsc"):
            raise Failed(
                f"{path} is yours and names the runsc {named!r}: have it say binary_name ="
                f' "{binary}", or move it away'
            )
        return {}

    def _before(
        self, place: distros.Registration, old: state.Installed | None, shim: str
    ) -> dict[str, Any] | None:
        """The configuration as it is; None if the daemon has no file of it, or can't be asked.

        Raises Failed if it has a runtime of that name which isn't ours.
        """
        if not _can_ask(self._node, place):
            return None
        found = dump(self._node, place)
        here = distros.runtimes(found, place.release).get(self._request.name, {})
        if here and old is None and here.get("runtime_path") != shim:
            kind = here.get("runtime_path") or here.get("runtime_type")
            raise Failed(
                f"containerd has a runtime {self._request.name} already, {kind}: remove it, or"
                " name another with --name"
            )
        return found

    def _tell(
        self,
        place: distros.Registration,
        bundle: versions.Bundle,
        version: str,
        runsc: runsc_source.RunscSource,
        changes: dict[str, str],
    ) -> None:
        """What is going to be changed, before it is."""
        release = f" with containerd {place.release}" if place.release else ""
        self._say(f"found {place.distro}{release}")
        there = version in self._versions.every()
        what = "is there already" if there else f"is copied to {self._versions.folder(version)}"
        self._say(f"version {version} of {bundle.arch} {what}")
        use = "is copied into it" if runsc.is_copied else "is used where it is"
        self._say(f"runsc: {runsc.words} {use}")
        if self._versions.current() != version:
            self._say(f"{self._versions.link} leads to it then")
        for path in changes:
            verb = "changed" if self._node.exists(path) else "written"
            self._say(f"{path} is {verb}")
        for comment in place.comments:
            self._say(f"note: {comment}")

    def _copy(
        self,
        undo: Undo,
        version: str,
        bundle: versions.Bundle,
        runsc: runsc_source.RunscSource,
    ) -> None:
        known = self._versions
        if version in known.every():
            return
        made = self._node.make_folder(known.folder(""))
        self._made = [path for path in made if len(path) < len(self._request.prefix)]
        undo.add(self._request.prefix, lambda: self._node.remove_folders(made))
        known.add(version, bundle, runsc)
        undo.add(f"version {version}", lambda: known.remove(version))

    def _self_test(
        self, version: str, runsc: runsc_source.RunscSource, binary: str, options: str | None
    ) -> None:
        """With the new version's own runsc, which the link doesn't lead to yet."""
        tested = runsc.system or self._versions.runsc_of(version)
        text = (options or "").replace(f'"{binary}"', f'"{tested}"')
        selftest.run(self._node, self._versions.folder(version), text)
        self._say("a sandbox was started and ended with it")

    def _register(
        self,
        undo: Undo,
        place: distros.Registration,
        old: state.Installed | None,
        texts: dict[str, str],
        version: str,
        runsc: runsc_source.RunscSource,
    ) -> None:
        node, known, name = self._node, self._versions, self._request.name
        earlier = known.current()
        if earlier != version:
            undo.add(f"the link to {version}", lambda: known.set_current(earlier))
            known.set_current(version)
        record = dict(old.files) if old is not None else {}
        folders = [*self._made, *(old.folders if old is not None else ())]
        for path, text in texts.items():
            if made := node.make_folder(os.path.dirname(path)):
                undo.add(made[-1], lambda made=made: node.remove_folders(made))  # type: ignore[misc]
                folders = [*made, *folders]
            before = node.read(path)
            backup = ""
            if path in record:
                backup = record[path][1]
            elif before is not None:
                backup = state.backup_of(path, name)
                undo.add(backup, lambda backup=backup: node.remove(backup))  # type: ignore[misc]
                node.write(backup, before)
            undo.add(path, lambda path=path, before=before: _set(node, path, before))  # type: ignore[misc]
            node.write(path, text)
            record[path] = (state.digest(text), backup)
        path = state.path_of(known.prefix, name)
        before = node.read(path)
        made = node.make_folder(os.path.dirname(path))
        undo.add(os.path.dirname(path), lambda: node.remove_folders(made))
        undo.add(path, lambda: _set(node, path, before))
        state.save(
            node,
            state.Installed(
                name=name,
                distro=place.distro,
                prefix=known.prefix,
                copied_runsc=runsc.is_copied,
                files=record,
                folders=tuple(folders),
                pattern=place.pattern or (old.pattern if old is not None else ""),
            ),
        )

    def _check(self, place: distros.Registration, before: dict[str, Any] | None, shim: str) -> None:
        """That the daemon reads what was meant, and nothing else differently."""
        if place.rendered:
            return  # it is seen after the restart
        after = dump(self._node, place)
        here = distros.runtimes(after, place.release).get(self._request.name, {})
        if here.get("runtime_path") != shim:
            raise Failed(
                f"containerd doesn't read {place.file}: its configuration has the runtime as"
                f" {here.get('runtime_path')!r}"
            )
        if before is not None:
            compare(before, after, self._request.name, place.release)
        self._say("containerd reads the runtime, and all else as before")

    def _restart(self, undo: Undo, place: distros.Registration) -> None:
        if not place.units:
            return
        if not self._request.restart:
            self._say(f"restart {place.units[0]} for it, as you asked not to have that done")
            return
        restart(self._node, place, self._say, undo)


def _set(node: Node, path: str, text: str | None) -> None:
    if text is None:
        node.remove(path)
    else:
        node.write(path, text)


def restart(
    node: Node, place: distros.Registration, say: Callable[[str], None], undo: Undo | None = None
) -> None:
    """Restart those of a distribution's units that run, by systemd.  Raises Failed."""
    if not node.is_folder("/run/systemd/system"):
        say("no systemd runs here: restart what runs the pods for it; running pods go on")
        return
    from runtime.host.systemd import Manager

    bus, private = node.path("/run/dbus/system_bus_socket"), node.path("/run/systemd/private")
    with Manager.connect(_RESTART_TIMEOUT, private=private, bus=bus) as manager:
        running = [unit for unit in place.units if manager.is_active(unit)]
        if not running:
            say(f"{' and '.join(place.units)} don't run: it takes effect when they are started")
        for unit in running:
            if undo is not None:
                undo.add(f"the restart of {unit}", lambda: restart(node, place, say))
            manager.restart(unit)
            say(f"restarted {unit}; running pods go on")


def remove_empty(node: Node, prefix: str) -> None:
    """Remove our folders where nothing is in them."""
    node.remove_folders((f"{prefix}/versions", f"{prefix}/state", prefix))


# -- uninstall ----------------------------------------------------------------------------------


def uninstall(node: Node, request: InstallRequest, say: Callable[[str], None]) -> None:
    """Remove the runtime of that name.  Raises Unsupported while pods run, and other faults."""
    if request.dry_run:
        _uninstall(node, request, say)
        return
    with Lock(node):
        _uninstall(node, request, say)


def _uninstall(node: Node, request: InstallRequest, say: Callable[[str], None]) -> None:
    known = versions.Versions(node, request.prefix)
    old = state.load(node, request.prefix, request.name)
    if old is None:
        say(f"no runtime {request.name} is installed in {request.prefix}")
        return
    _require_no_pods(known)
    say(f"found {request.name} on {old.distro}")
    for path in old.files:
        say(f"{path} is {'restored' if old.files[path][1] else 'removed'}")
    last = len(node.names(f"{request.prefix}/state")) == 1
    if last:
        say(f"{request.prefix} is removed")
    if request.dry_run:
        return
    old = _hand_over(node, old)
    changed = [path for path in old.files if path != options_path(request.name)]
    for path in changed:
        state.put_back(node, old, path)
    if changed and request.restart:
        restart(
            node, distros.Registration(distro=old.distro, file="", units=_units(old.distro)), say
        )
    # One that was started in between goes on with what it has.
    _require_no_pods(known)
    if options_path(request.name) in old.files:
        state.put_back(node, old, options_path(request.name))
    node.remove(state.path_of(request.prefix, request.name))
    if last:
        known.set_current("")
        for name in known.every():
            known.remove(name)
        remove_empty(node, request.prefix)
    node.remove_folders(old.folders)
    node.remove(_LOCK)
    say(f"{request.name} is uninstalled")


def _hand_over(node: Node, old: state.Installed) -> state.Installed:
    """Have another installed runtime own what both need: the import and the folders."""
    for name in node.names(f"{old.prefix}/state"):
        other = state.load(node, old.prefix, name.removesuffix(".json"))
        if other is None or other.name == old.name:
            continue
        shared = {distros.CONFIG} if old.pattern else set()
        given = {path: value for path, value in old.files.items() if path in shared}
        state.save(
            node,
            other.replace(
                files={**given, **other.files},
                folders=(*other.folders, *old.folders),
                pattern=other.pattern or old.pattern,
            ),
        )
        rest = {path: value for path, value in old.files.items() if path not in shared}
        return old.replace(files=rest, folders=())
    return old


def _require_no_pods(known: versions.Versions) -> None:
    if pods := known.shims():
        shown = ", ".join(each[:13] for each in pods[:5]) + (", ..." if len(pods) > 5 else "")
        what = "pod runs" if len(pods) == 1 else "pods run"
        raise Unsupported(f"{len(pods)} {what} with it: {shown}; end them first (gvctl list)")


def _units(distro: str) -> tuple[str, ...]:
    return {
        "containerd": ("containerd.service",),
        "k3s": ("k3s.service", "k3s-agent.service"),
        "rke2": ("rke2-server.service", "rke2-agent.service"),
        "microk8s": ("snap.microk8s.daemon-containerd.service",),
        "crio": ("crio.service",),
    }.get(distro, ())


def running_as_root() -> None:
    """Raise InvalidRequest unless we may do all of this."""
    if os.geteuid():
        raise InvalidRequest("user", f"uid {os.geteuid()} can't install anything: run it as root")
