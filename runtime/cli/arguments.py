"""The command line of ``gvctl``: its verbs and their arguments, with what the help says of them.

Parsing, help, man page and shell completion are all made from this description.  The OCI runtime
verbs take what runc takes, so that programs that call runc can call this.
"""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

PROGRAM = "gvctl"
#: Where containers are kept that gvctl itself makes.
OWN_ROOT = "/run/gvctl"
DESCRIPTION = "look after gVisor sandboxes: those of the shim, of runsc, and its own"
#: What an error in the command line ends with, as in runc.
USAGE_ERROR = 1
FORMATS = ("table", "json")


class UsageError(Exception):
    """The command line is wrong.  ``usage`` is the line that says how it would be right."""

    def __init__(self, message: str, usage: str) -> None:
        self.usage = usage
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """Raises instead of printing and exiting; knows no abbreviations."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", _Help)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().strip())


class _Help(argparse.HelpFormatter):
    """Names metavariables once, and leaves room for long options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=96)


def duration(text: str) -> float:
    """Seconds, from a number or from Go's form such as 500ms, 5s, 1m30s."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, number, rest = 0.0, "", text
    try:
        if rest.replace(".", "", 1).isdigit():
            return float(rest)
        while rest:
            number = ""
            while rest and (rest[0].isdigit() or rest[0] == "."):
                number, rest = number + rest[0], rest[1:]
            unit = "ms" if rest.startswith("ms") else rest[:1]
            total += float(number) * units[unit]
            rest = rest[len(unit) :]
        if text:
            return total
    except (ValueError, KeyError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 5s or 500ms")


def port(text: str) -> int:
    """A TCP port."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")


def forwarding(text: str) -> tuple[int, int]:
    """``LOCAL:REMOTE`` or ``PORT``; a local port of 0 or none is chosen by the system."""
    local, colon, remote = text.rpartition(":")
    if not colon:
        return port(remote), port(remote)
    return (0 if local in ("", "0") else port(local)), port(remote)


def flag(text: str) -> tuple[str, str]:
    """A flag of runsc's as ``NAME=VALUE``, or ``NAME`` for true."""
    name, equals, value = text.lstrip("-").partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value if equals else "true"


def build() -> Parser:
    """The parser.  What it parses has ``verb`` and ``call`` (``module:function``)."""
    parser = Parser(prog=PROGRAM, description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--root",
        metavar="DIR",
        default="",
        help=(
            "directory of the containers' state; without it, all below /run/containerd/runsc and "
            f"{OWN_ROOT} are looked for, and new ones are made in {OWN_ROOT}"
        ),
    )
    add("-n", "--namespace", metavar="NAME", default="", help="containerd namespace to look in")
    add("--log", metavar="FILE", default="", help="append log lines to FILE instead of stderr")
    add("--log-format", choices=("text", "json"), default="text", help="form of log lines")
    add("--debug", action="store_true", help="log what is done as well")
    add(
        "--systemd-cgroup", action="store_true", help="cgroupsPath is of the form slice:prefix:name"
    )
    add(
        "--config",
        metavar="FILE",
        default="",
        help=("file with the shim's options; without it, the first of the shim's own that exists"),
    )
    add("--runsc", metavar="PATH", default="", help="the runsc binary")
    add(
        "--flag",
        metavar="NAME=VALUE",
        type=flag,
        action="append",
        default=[],
        help=("a flag of runsc's, as network=none; can be given several times"),
    )
    add("--rootless", metavar="VALUE", default="auto", help="accepted for runc's sake")
    add("--criu", metavar="PATH", default="", help="accepted for runc's sake")
    add("-v", "--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(
        dest="verb", metavar="COMMAND", title="commands", parser_class=Parser
    )
    _looking(verbs)
    _acting(verbs)
    _runtime(verbs)
    _host(verbs)
    return parser


class _Verbs:
    """Adds verbs that have a handler."""

    def __init__(self, verbs: Any, module: str) -> None:
        self._verbs, self._module = verbs, module

    def add(self, name: str, help: str, *, ident: bool = True, **options: Any) -> Any:
        parser = self._verbs.add_parser(name, help=help, description=help, **options)
        parser.set_defaults(call=f"{self._module}:{name.replace('-', '_')}")
        if ident:
            parser.add_argument(
                "id", metavar="ID", help="id of the container, or how only it begins"
            )
        return parser


def _format(parser: Any) -> None:
    parser.add_argument(
        "-f", "--format", choices=FORMATS, default="table", help="form of the output"
    )


def _looking(verbs: Any) -> None:
    look = _Verbs(verbs, "show")
    p = look.add("list", "list containers", ident=False)
    # Here as well as before the verb; without a default of its own, which would undo that one.
    p.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="containerd namespace to look in",
    )
    _format(p)
    p.add_argument("-q", "--quiet", action="store_true", help="ids only")
    p = look.add("ps", "list the processes in a container; pids are the sandbox's own numbers")
    p.add_argument(
        "-f",
        "--format",
        choices=(*FORMATS, "details"),
        default="table",
        help="form of the output: json has the pids alone, as runc's; details is JSON with all",
    )
    p.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)
    look.add("state", "print a container's state as JSON")
    p = look.add("events", "print a container's figures as JSON, again and again")
    p.add_argument(
        "--interval", type=duration, default=5.0, metavar="TIME", help="time between, default 5s"
    )
    p.add_argument("--stats", action="store_true", help="once")
    p = look.add("usage", "print what the sandbox's memory is used for")
    _format(p)
    p.add_argument(
        "--full", action="store_true", help="with details, which takes the sentry longer"
    )
    p.add_argument(
        "--fd",
        action="store_true",
        help=("by the sandbox's memory files, without asking the sentry to collect"),
    )
    look.add("stacks", "print the stacks of the sentry's goroutines")
    p = _Verbs(verbs, "top").add("top", "show what pods use, live", ident=False)
    _format(p)
    p.add_argument(
        "--interval", type=duration, default=2.0, metavar="TIME", help="time between, default 2s"
    )
    p.add_argument("--once", action="store_true", help="print one table and end")
    p.add_argument(
        "--sort",
        choices=("cpu", "memory", "pids", "restarts", "pod"),
        default="cpu",
        help="order; on a terminal the keys c, m, p, r and n change it",
    )
    p = _Verbs(verbs, "exporter.serve").add(
        "metrics", "print figures of all sandboxes in Prometheus' text format", ident=False
    )
    p.add_argument(
        "--listen",
        default="",
        metavar="WHERE",
        help="serve them at /metrics: unix:PATH, or a loopback address as 127.0.0.1:9410",
    )
    p.add_argument(
        "--sentry-metrics",
        default="",
        metavar="REGEX",
        help="names of the sentries' own metrics (RE2), default all; - for none",
    )
    p = _Verbs(verbs, "logs").add(
        "logs", "print a sandbox's log files, where the options ask for them"
    )
    p.add_argument(
        "--kind", choices=("log", "debug", "panic", "user", "all"), default="all", help="which"
    )
    p.add_argument("--list", action="store_true", help="print the files' names only")
    p.add_argument("--tail", type=int, default=-1, metavar="N", help="the last N lines of each")
    p.add_argument("-F", "--follow", action="store_true", help="go on until the sandbox ends")


def _acting(verbs: Any) -> None:
    act = _Verbs(verbs, "manage")
    p = act.add("kill", "send a signal to a container's init, or to all its processes")
    p.add_argument(
        "signal",
        nargs="?",
        default="SIGTERM",
        metavar="SIGNAL",
        help="name or number, default SIGTERM",
    )
    p.add_argument("-a", "--all", action="store_true", help="to all processes in the container")
    p.add_argument("--pid", type=int, default=0, help="to this process, a number that ps shows")
    act.add("pause", "freeze a container's sandbox, and with it all containers of the pod")
    act.add("resume", "let a paused sandbox run again")
    p = act.add("wait", "wait for the end of a container's init and print its exit status")
    p.add_argument("--pid", type=int, default=0, help="for this process, as exec -d told it")
    p.add_argument("--timeout", type=duration, default=None, metavar="TIME", help="give up then")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--restore", action="store_true", help="for the end of its restore instead")
    what.add_argument("--checkpoint", action="store_true", help="for the next checkpoint instead")
    what.add_argument(
        "--fsrestore", action="store_true", help="until its files are restored instead"
    )
    what.add_argument(
        "--fscheckpoint", action="store_true", help="for the next checkpoint of files instead"
    )
    p = act.add("reduce", "have the sentry give back memory that it can do without")
    p.add_argument("--wait", action="store_true", help="until it is given back")
    p = act.add("delete", "delete a container that is created or stopped, and all that it holds")
    p.add_argument(
        "-f", "--force", action="store_true", help="also if it runs; no error if it isn't there"
    )
    _limits(_Verbs(verbs, "update").add("update", "change a container's limits while it runs"))
    p = _Verbs(verbs, "execute").add("exec", "run another process in a container")
    p.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    p.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="stdin is always attached; accepted for docker's sake",
    )
    p.add_argument("-d", "--detach", action="store_true", help="don't wait for its end")
    p.add_argument("--cwd", default="", metavar="DIR", help="working directory in the container")
    p.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable"
    )
    p.add_argument(
        "-u",
        "--user",
        default="",
        metavar="USER[:GROUP]",
        help="user and group, by number or as the /etc of the container's image names them",
    )
    p.add_argument(
        "-g",
        "--additional-gids",
        action="append",
        default=[],
        type=int,
        metavar="GID",
        help="another group",
    )
    p.add_argument(
        "-c", "--cap", action="append", default=[], metavar="CAP", help="another capability"
    )
    p.add_argument("--no-new-privs", action="store_true", help="no privileges by setuid programs")
    p.add_argument(
        "-p", "--process", default="", metavar="FILE", help="process.json that says all of this"
    )
    p.add_argument(
        "--console-socket",
        default="",
        metavar="PATH",
        help="socket to send the terminal's master to",
    )
    p.add_argument(
        "--pid-file", default="", metavar="FILE", help="where to write the pid, last of all"
    )
    p.add_argument(
        "--preserve-fds", type=int, default=0, metavar="N", help="not supported but for 0"
    )
    for name in ("--process-label", "--apparmor", "--cgroup"):
        p.add_argument(name, default="", metavar="VALUE", help="accepted for runc's sake")
    p.add_argument("--ignore-paused", action="store_true", help="accepted for runc's sake")
    p.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="program and arguments"
    )
    p = _Verbs(verbs, "insight.debug").add(
        "debug", "write an archive for the report of a fault, without arguments and environments"
    )
    p.add_argument(
        "-o", "--output", default="", metavar="FILE", help="where to, default a name here; - stdout"
    )
    p = _Verbs(verbs, "insight.log_level").add(
        "log-level", "print or change how much the shim and the sentry log, while they run"
    )
    p.add_argument(
        "level",
        nargs="?",
        default="",
        metavar="LEVEL",
        choices=("", "trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"),
        help="trace, debug, info, warn, error, fatal or panic",
    )
    p.add_argument("--only", choices=("shim", "sentry"), default="", help="of this one only")
    p = _Verbs(verbs, "insight.trace").add(
        "trace", "have a sandbox tell a program of what runs in it", ident=False
    )
    p.add_argument(
        "action",
        choices=("create", "delete", "list", "procfs"),
        help="what of its trace sessions; procfs prints what is known of its processes",
    )
    p.add_argument("id", metavar="ID", help="id of the container, or how only it begins")
    p.add_argument(
        "-s",
        "--session",
        default="",
        metavar="FILE",
        help="create: its points and sinks, as for runsc trace create --config",
    )
    p.add_argument("--force", action="store_true", help="create: in the place of one that is there")
    p.add_argument("--name", default="Default", help="delete: which, default Default")
    p.add_argument("--environment", action="store_true", help="procfs: also the environment")
    _format(p)
    p = _Verbs(verbs, "files.cp").add(
        "cp", "copy files between a container and the host, or a tar archive", ident=False
    )
    p.add_argument("source", metavar="SOURCE", help="ID:PATH, a path here, or - for an archive")
    p.add_argument("target", metavar="TARGET", help="the other one of the two, or -")
    p.add_argument("-a", "--archive", action="store_true", help="keep owners and all modes")
    p.add_argument("-L", "--follow-link", action="store_true", help="what SOURCE is a link to")
    p = _Verbs(verbs, "port_forward").add(
        "port-forward", "listen here for connections to a port in the sandbox"
    )
    p.add_argument(
        "ports", nargs="+", type=forwarding, metavar="[LOCAL:]REMOTE", help="port here and there"
    )
    p.add_argument("--address", default="127.0.0.1", help="address to listen on, default 127.0.0.1")


def _limits(parser: Any) -> None:
    add = parser.add_argument
    add(
        "-r",
        "--resources",
        default="",
        metavar="FILE",
        help="all of it, as JSON like linux.resources of config.json; - for stdin",
    )
    sizes = "in bytes, or with a unit as in 512M; -1 for none"
    add("-m", "--memory", metavar="SIZE", help=f"limit of memory {sizes}")
    add(
        "--memory-reservation", metavar="SIZE", help=f"memory that it is reclaimed down to, {sizes}"
    )
    add("--memory-swap", metavar="SIZE", help=f"limit of memory and swap together, {sizes}")
    add(
        "--cpu-quota", type=int, metavar="US", help="CPU time in each period in us, -1 for no limit"
    )
    add("--cpu-period", type=int, metavar="US", help="the period in us")
    add("--cpu-burst", type=int, metavar="US", help="CPU time saved up at most in us")
    add("--cpu-shares", "--cpu-share", type=int, metavar="N", help="share of CPU beside others")
    add("--cpu-idle", type=int, metavar="0|1", help="whether it gets only what others leave")
    add("--cpu-rt-period", type=int, metavar="US", help="period for real-time tasks in us")
    add("--cpu-rt-runtime", type=int, metavar="US", help="CPU time of real-time tasks in it")
    add("--cpuset-cpus", metavar="LIST", help="CPUs that it may use, as 0-3,5")
    add("--cpuset-mems", metavar="LIST", help="memory nodes that it may use")
    add(
        "--pids-limit",
        type=int,
        metavar="N",
        help="limit of the sandbox's tasks on the host, -1 for none",
    )
    add("--blkio-weight", type=int, metavar="N", help="share of block I/O beside others")


def _runtime(verbs: Any) -> None:
    life = _Verbs(verbs, "lifecycle")
    for name, help in (
        ("create", "create a container from a bundle; start runs its program"),
        ("run", "create and start a container, and wait for its end"),
        ("restore", "create a container and let it go on where a checkpoint was taken"),
    ):
        p = life.add(name, help)
        p.add_argument(
            "-b",
            "--bundle",
            default=".",
            metavar="DIR",
            help="the bundle, default the working directory",
        )
        p.add_argument(
            "--console-socket",
            default="",
            metavar="PATH",
            help="socket to send the terminal's master to",
        )
        p.add_argument(
            "--pid-file", default="", metavar="FILE", help="where to write the pid, last of all"
        )
        p.add_argument(
            "--preserve-fds",
            type=int,
            default=0,
            metavar="N",
            help="also pass on the N files from descriptor 3 on",
        )
        p.add_argument(
            "--user-log",
            default="",
            metavar="FILE",
            help="where the sentry tells users what it lacks",
        )
        for option in ("--no-pivot", "--no-new-keyring"):
            p.add_argument(option, action="store_true", help="accepted for runc's sake")
        if name != "restore":
            p.add_argument(
                "--fs-restore-image-path",
                default="",
                metavar="DIR",
                help="put the files into it that fscheckpoint saved",
            )
        if name == "create":
            continue
        p.add_argument("-d", "--detach", action="store_true", help="don't wait for its end")
        p.add_argument("--keep", action="store_true", help="don't delete it after its end")
        p.add_argument("--no-subreaper", action="store_true", help="accepted for runc's sake")
        if name == "restore":
            _checkpoint_options(p, required=True)
    life.add("start", "run the program of a created container")
    p = life.add("checkpoint", "save a container's sandbox to files")
    _checkpoint_options(p, required=True)
    p.add_argument("--leave-running", action="store_true", help="let it run on afterwards")
    p.add_argument(
        "--compression",
        choices=("none", "flate-best-speed"),
        default=None,
        help="of the image, where the release has it",
    )

    p = life.add("fscheckpoint", "save what a sandbox keeps of its files, and no process")
    p.add_argument("--image-path", required=True, metavar="DIR", help="directory of the files")
    p.add_argument("--leave-running", action="store_true", help="let it run on afterwards")
    p.add_argument(
        "--path",
        action="append",
        metavar="[NAME:]PATH",
        help=(
            "a mount to save, of the container of that name; can be given several times; all-tmpfs "
            "is every tmpfs that the sandbox keeps in a file; default /"
        ),
    )


def _checkpoint_options(parser: Any, required: bool) -> None:
    parser.add_argument(
        "--image-path", required=required, metavar="DIR", help="directory of the image's files"
    )
    for name in ("--work-path", "--parent-path", "--manage-cgroups-mode"):
        parser.add_argument(name, default="", metavar="VALUE", help="accepted for runc's sake")
    for name in ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"):
        parser.add_argument(name, action="store_true", help="accepted for runc's sake")


def _host(verbs: Any) -> None:
    p = _Verbs(verbs, "doctor").add(
        "doctor", "say what works on this host, what doesn't, and what to do", ident=False
    )
    _format(p)
    _installing(_Verbs(verbs, "install.verbs"))
    p = _Verbs(verbs, "config_snippets").add(
        "config", "print the configuration for containerd and Kubernetes", ident=False
    )
    p.add_argument(
        "what",
        nargs="?",
        choices=("all", "containerd", "runtimeclass", "options"),
        default="all",
        help="what of it",
    )
    p.add_argument(
        "--containerd",
        metavar="VERSION",
        default="",
        help="for this version instead of the one found, as 1.7 or 2.1",
    )
    p.add_argument("--handler", default="gvisor", help="name of the runtime, default gvisor")
    more = _Verbs(verbs, "features_spec")
    more.add(
        "features", "print what the runtime can do, as the OCI's features document", ident=False
    )
    p = more.add("spec", "write a config.json to start from", ident=False)
    p.add_argument(
        "-b",
        "--bundle",
        default=".",
        metavar="DIR",
        help="the bundle, default the working directory",
    )
    p.add_argument("--rootless", action="store_true", help="accepted for runc's sake")
    p = more.add("completion", "print a completion script for a shell", ident=False)
    p.add_argument("shell", choices=("bash", "zsh", "fish"))


def _installing(install: _Verbs) -> None:
    """The verbs that change the node."""
    for name, help in (
        ("install", "install the shim of this bundle on a node, for whatever runs its pods"),
        ("upgrade", "install this bundle's version over an earlier one; running pods go on"),
        ("uninstall", "remove the shim from a node, if no pods run with it"),
    ):
        p = install.add(name, help, ident=False)
        p.add_argument(
            "--root",
            dest="node_root",
            metavar="DIR",
            default="/",
            help="root of the node's file system, default /",
        )
        p.add_argument(
            "--name", default="gvisor", help="name of the runtime's handler, default gvisor"
        )
        p.add_argument(
            "--prefix",
            metavar="DIR",
            default="/opt/gvisor-shim",
            help="folder of the versions, default /opt/gvisor-shim",
        )
        if name != "uninstall":
            p.add_argument(
                "--distro",
                choices=("auto", "containerd", "k3s", "rke2", "k0s", "microk8s", "crio", "talos"),
                default="auto",
                help="what runs the node's pods, default: what is found",
            )
            p.add_argument(
                "--runsc",
                dest="new_runsc",
                metavar="PATH|TARBALL",
                default="",
                help="runsc to be copied, or a release's tarball; default: the node's own",
            )
            p.add_argument(
                "--no-self-test", action="store_true", help="start no sandbox before it is used"
            )
        if name == "upgrade":
            p.add_argument("--running", action="store_true", help="upgrade pods that run instead")
            p.add_argument("--program", metavar="PATH", default="", help="to which shim they are")
            p.add_argument("ids", nargs="*", metavar="ID", help="only the pods of these")
        p.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )
        p.add_argument(
            "--no-restart", action="store_true", help="leave the restart that is due to others"
        )
