"""Who may import whom, and what the short-lived commands may load."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import import_cost
from shim.forkserver import preload
from tests.shim.process import Shim

ROOT = Path(__file__).resolve().parents[1]
OWN = {"shim", "runtime", "protos"}
#: The one importer of each heavy dependency.
SOLE_IMPORTERS = {
    "pyroute2": {"runtime/network/helper.py"},
    "structlog": {"runtime/base/log.py"},
    "cffi": {"runtime/_native_build.py"},
    "runtime._native": {"runtime/host/linux.py", "runtime/host/spawn.py"},
}
#: The rooms of ``runtime/`` from the ground up, and those that each may import.
ARROWS = {
    "base": (),
    "host": ("base",),
    "bundle": ("host", "base"),
    "network": ("bundle", "host", "base"),
    "cgroups": ("bundle", "host", "base"),
    "runsc": ("cgroups", "bundle", "host", "base"),
    "sandbox": ("runsc", "cgroups", "network", "bundle", "host", "base"),
    "state": ("sandbox", "runsc", "cgroups", "network", "bundle", "host", "base"),
    "task": ("state", "sandbox", "runsc", "cgroups", "network", "bundle", "host", "base"),
    "cli": ("task", "state", "sandbox", "runsc", "cgroups", "network", "bundle", "host", "base"),
}
#: The rooms of ``shim/``: those of its own that each may import, and the highest of ``runtime/``.
SHIM_ARROWS = {
    "ttrpc": ((), ""),
    "base": (("ttrpc",), "task"),
    "stdio": ((), "task"),
    "observe": (("base", "ttrpc"), "task"),
    "sandbox": (("base", "ttrpc"), "task"),
    "forkserver": (("base",), "host"),
    "handover": ((), "host"),
    "": (("handover", "observe", "sandbox", "forkserver", "stdio", "base", "ttrpc"), "cli"),
}
#: The rooms of ``integration/harness/`` from the ground up; each may import those before it.
HARNESS = ("base", "host", "clients", "nodes", "figures", "soak")
#: Never at a module's top level: each costs every pod memory or time.
LAZY = {
    "argparse", "array", "asyncio", "collections.abc", "contextlib", "dataclasses", "datetime",
    "enum", "inspect", "ipaddress", "json", "logging", "pathlib", "pyroute2", "random", "re",
    "selectors", "shutil", "signal", "socket", "ssl", "structlog", "subprocess", "tempfile",
    "tomllib", "traceback", "typing", "urllib", "uuid", "zlib",
}  # fmt: skip
#: Builders and short-lived helpers, which no daemon loads.
TOOLS = {"runtime/_native_build.py", "runtime/network/helper.py", "shim/info.py"} | {
    str(path.relative_to(ROOT)) for path in (ROOT / "runtime/cli").rglob("*.py")
}


def modules() -> list[Path]:
    return sorted(p for package in ("shim", "runtime") for p in (ROOT / package).rglob("*.py"))


def _guarded(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(
    tree: ast.AST, package: str = "", *, everywhere: bool = True, types: bool = False
) -> Iterator[str]:
    """The modules that code in ``package`` imports; its top level only unless ``everywhere``.

    What is for type checkers only counts if ``types``.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            module = ".".join(filter(None, (package if node.level else "", node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and _guarded(node) and not types:
            rest = ast.Module(node.orelse, [])
            yield from imports(rest, package, everywhere=everywhere, types=types)
        elif everywhere or not isinstance(node, ast.FunctionDef):
            yield from imports(node, package, everywhere=everywhere, types=types)


def imports_of(path: Path, *, everywhere: bool = True) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(imports(ast.parse(path.read_text()), package, everywhere=everywhere))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_arrows(path: Path) -> None:
    name = name_of(path)
    allowed = {"shim", "runtime", "protos"}
    if name.startswith("runtime/"):
        allowed = {"runtime"}
    if name.startswith("shim/ttrpc/"):
        allowed = {"shim.ttrpc"}
    for imported in imports_of(path):
        if imported.split(".")[0] in OWN and imported != "shim":
            assert any(within(imported, p) for p in allowed), imported
        for module, importers in SOLE_IMPORTERS.items():
            if within(imported, module):
                assert name in importers, f"{imported} is imported by {name}"


def test_one_module_writes_down_what_is_known_of_containers() -> None:
    """Who writes which file when is the question of every bug after a restart."""
    found = {
        name_of(path)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if ast.unparse(node.func) in ("shim_record.save", "runsc_state.save")
    }
    assert found == {"runtime/state/writer.py"}


def graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, in functions and for type checkers, too."""
    names = {
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in modules()
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        package = ".".join(path.relative_to(ROOT).parent.parts)
        tree = ast.parse(path.read_text())
        everything = set(imports(tree, package, types=True))
        found[name] = {i for i in everything if i in names and i not in (name, package)}
    return found


def test_a_shim_has_loaded_all_that_it_may_import() -> None:
    """Whatever a shim's modules import in functions: its files may be gone by then."""
    arrows, reached, todo = graph(), set(), ["shim.daemon"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += arrows[module]
    spared = {m for m in reached if within(m, "shim.forkserver") or m == "runtime.network.helper"}
    # What traces is loaded at the start, or never.
    spared |= {"shim.observe.tracing", "shim.observe.tracing_setup", "shim.observe.otlp"}
    assert "shim.stdio.console" in reached
    assert reached - spared <= set(preload.of_a_shim())
    assert reached <= set(preload.own_modules())
    # And no more than that: it is every shim's own memory.
    packages = {name for name in preload.of_a_shim() if any(within(m, name) for m in reached)}
    assert {m for m in preload.of_a_shim() if not within(m, "protos")} <= reached | packages


def room_of(module: str) -> str:
    """The folder below ``runtime/`` or ``shim/`` that holds it; empty for these two themselves."""
    first, _, rest = module.partition(".")
    found = rest.partition(".")[0]
    return found if (ROOT / first / found).is_dir() else ""


def test_arrows_between_rooms_run_downward() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, targets in graph().items()
        if module.startswith("runtime.") and room_of(module)
        for imported in sorted(targets)
        if room_of(imported) not in (*ARROWS[room_of(module)], room_of(module), "")
    ]
    assert wrong == []


def test_arrows_between_the_shims_rooms_run_downward() -> None:
    wrong = []
    for module, targets in graph().items():
        if not within(module, "shim"):
            continue
        own, highest = SHIM_ARROWS[room_of(module)]
        allowed = {"", highest, *ARROWS.get(highest, ())} if highest else set()
        if module == "shim.forkserver.child" or module == "shim.forkserver.preload":
            allowed.add("network")  # whose helper a fork becomes
        for imported in sorted(targets - {"shim"}):
            if within(imported, "shim"):
                good = room_of(imported) in (*own, room_of(module))
            else:
                good = within(imported, "protos") or room_of(imported) in allowed
            if not good:
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_every_room_is_in_the_table_and_is_no_hall() -> None:
    rooms = {path.parent.name for path in (ROOT / "runtime").glob("*/__init__.py")}
    assert rooms == set(ARROWS)
    rooms = {path.parent.name for path in (ROOT / "shim").glob("*/__init__.py")}
    assert {*rooms, ""} == set(SHIM_ARROWS)
    flat = {path.name for path in (ROOT / "runtime").glob("*.py")}
    assert flat == {"__init__.py", "_native_build.py"}
    sizes = {folder: len(list(folder.glob("*.py"))) - 1 for folder in {p.parent for p in modules()}}
    assert {str(folder): n for folder, n in sizes.items() if n > 22} == {}


def test_the_harness_is_rooms_too_and_shares_no_code_with_the_product() -> None:
    folder = ROOT / "integration/harness"
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(HARNESS)
    assert {path.name for path in folder.glob("*.py")} == {"__init__.py"}
    wrong = []
    for path in folder.glob("*/*.py"):
        room = path.parent.name
        below = HARNESS[: HARNESS.index(room) + 1]
        for imported in imports(ast.parse(path.read_text()), types=True):
            first, _, rest = imported.partition(".")
            harness = rest.startswith("harness.") and rest.split(".")[1] in below
            if first in OWN or (first == "integration" and not harness):
                wrong.append(f"{name_of(path)} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in modules() if name_of(p) not in TOOLS], ids=name_of)
def test_nothing_heavy_at_the_top(path: Path) -> None:
    found = imports_of(path, everywhere=False)
    assert not {i for i in found for module in LAZY if within(i, module)}


def test_no_cycles() -> None:
    """Not for type checkers either, but within the vendored ttrpc."""
    arrows = {m: t for m, t in graph().items() if not m.startswith("shim.ttrpc")}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in arrows and name not in done:
            for imported in sorted(arrows[name]):
                visit(imported, (*trail, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


def test_a_class_name_occurs_once() -> None:
    """So that a stack trace says which it is.  ttrpc's Request is that of its protocol."""
    places: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and name_of(path) != "shim/ttrpc/envelope.py":
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_function_takes_a_herd_of_parameters() -> None:
    """What travels together is a record.  ttrpc's server is for others as well."""
    herds = {
        f"{name_of(path)}: {node.name}": count
        for path in modules()
        if name_of(path) != "shim/ttrpc/server.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        if (count := len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)) > 9
    }
    assert herds == {}


def test_modules_are_not_too_long() -> None:
    assert {name_of(p): n for p in modules() if (n := len(p.read_text().splitlines())) > 600} == {}


# -- what a whole process loads -------------------------------------------------------------

#: Of the standard library, what is no part of the interpreter itself.
START = {"__future__", "_socket", "_sha256", "_sha2", "_json", "errno", "fcntl", "gc", "select"}
DELETE = {"__future__", "_socket", "_json", "errno", "fcntl", "gc", "select"}
_REPORT = (
    "import os, sys\n"
    "before = set(sys.modules)\n"
    "write = lambda: open('modules', 'w').write(' '.join(sorted(set(sys.modules) - before)))\n"
    "leave = os._exit\n"
    "os._exit = lambda status: (write(), leave(status))\n"
)


def loaded(bundle: Path) -> set[str]:
    text = (bundle / "modules").read_text()
    return {m for m in text.split() if m.split(".")[0] not in OWN}


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    shim = Shim(tmp_path)
    shim.extra = _REPORT
    yield shim
    shim.close()


def test_budget_of_start(shim: Shim) -> None:
    annotations = {"io.kubernetes.cri.sandbox-id": "c1"}
    first, second = (shim.bundle(n, {"annotations": annotations}) for n in ("c1", "c2"))
    # For the daemon: with the real command's modules only, as it shares the process.
    assert shim.start("c2", second).returncode == 0
    assert shim.start("c1", first).returncode == 0
    for bundle in (first, second):
        assert loaded(bundle) - START - {"_frozen_importlib_external"} == set()


def test_budget_of_delete_with_nothing_to_do(shim: Shim) -> None:
    bundle = shim.bundle("c1", {})
    assert shim.start("c1", bundle).returncode == 0
    assert shim.delete("c1", bundle).returncode == 0
    assert loaded(bundle) - DELETE == set()


#: Everything that a daemon may ever load of ours, and what its containers have it do.
_DAEMON = """
import importlib, sys
sys.path[:0] = {path!r}
for name in {names!r}:
    importlib.import_module(name)

from protos import events_pb2, task_pb2
from runtime.runsc import urpc
from runtime.host.spawn import SpawnSpec, spawn

task_pb2.CreateTaskRequest(id="c").SerializeToString()
events_pb2.TaskExit.FromString(b"")
decoder = urpc.ReplyDecoder()
assert decoder.feed(b'{{"success":true,"err":"","result":[1.5]}}').value() == [1.5]
urpc.encode_request("A.B", {{"CID": "c"}})
child = spawn(SpawnSpec(path="/bin/true", argv=("true",), fds={{}}))
child.wait(10)
child.close()
print(*sys.modules)
"""


def loaded_by(program: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_budget_of_the_daemon() -> None:
    names = [
        name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for p in modules()
        if name_of(p) not in TOOLS
    ]
    path = [str(ROOT), sysconfig.get_path("platlib")]
    found = loaded_by(_DAEMON.format(path=path, names=names))
    assert "runtime.task.create" in found and "shim.stdio.process_io" in found
    assert found & LAZY <= {"collections.abc"}  # a name that threading's imports give it
    assert not {name for name in found if within(name, "structlog") or within(name, "pyroute2")}


def test_a_daemon_loads_what_few_shims_need_when_one_does() -> None:
    path = [str(ROOT), sysconfig.get_path("platlib")]
    found = loaded_by(f"import sys; sys.path[:0]={path!r}; import shim.daemon; print(*sys.modules)")
    assert "runtime.task.create" in found
    seldom = [each for each in preload.SELDOM if each != "protos"]
    assert not {name for name in found if any(within(name, each) for each in seldom)}


#: Ours and others', but for those that the interpreter needs itself.  To be lowered, not raised.
MOST_MODULES = {"start": 29, "delete": 30, "daemon": 197, "gvctl list": 121}


@pytest.mark.parametrize(("name", "before", "measured"), import_cost.PROCESSES)
def test_what_a_process_loads_can_be_measured(name: str, before: str, measured: str) -> None:
    modules, milliseconds, memory = import_cost.measure(before, measured)
    assert modules > 10 and milliseconds > 0 and memory > 0, name
    assert modules <= MOST_MODULES[name]


def test_the_interpreter_itself_loads_none_of_it() -> None:
    # Or else the budgets above would prove nothing.
    assert not loaded_by("import sys; print(*sys.modules)") & (LAZY | {"google", "threading"})
