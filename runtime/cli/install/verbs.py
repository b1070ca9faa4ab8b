"""The verbs: what the command line says, as a request; what is done, as lines."""

from __future__ import annotations

from runtime.cli import config_snippets, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.cli.install.steps import InstallRequest


def _request(args: argparse.Namespace) -> InstallRequest:
    from runtime.base.errors import InvalidRequest
    from runtime.cli.install import steps

    name = config_snippets.check_handler(args.name, "--name")
    if "." in name or name == "runc":
        raise InvalidRequest("--name", f"{name!r} can't be a handler of ours")
    prefix = args.prefix.rstrip("/")
    if not prefix.startswith("/") or any(c in prefix for c in "\"'\\\n\0"):
        raise InvalidRequest("--prefix", f"{args.prefix!r} is no absolute path of a folder")
    steps.running_as_root()
    return steps.InstallRequest(
        name=name,
        prefix=prefix,
        distro=getattr(args, "distro", "auto"),
        runsc=getattr(args, "new_runsc", ""),
        dry_run=args.dry_run,
        restart=not args.no_restart,
        upgrade=args.verb == "upgrade",
        self_test=not getattr(args, "no_self_test", False),
    )


def _say(line: str) -> None:
    output.write(output.plain(line) + "\n")


def install_verb(args: argparse.Namespace) -> None:
    """``install`` and ``upgrade``."""
    from runtime.cli.install import steps
    from runtime.cli.install.node import Node

    steps.Installation(Node(args.node_root), _request(args), _say).run()


def upgrade_verb(args: argparse.Namespace) -> int:
    """``upgrade``, of the node or of its running pods."""
    if args.running:
        from runtime.cli.install.running import upgrade_running

        return upgrade_running(args)
    if args.ids or args.program:
        from runtime.base.errors import InvalidRequest

        raise InvalidRequest("ID" if args.ids else "--program", "is for --running only")
    install_verb(args)
    return 0


def uninstall_verb(args: argparse.Namespace) -> None:
    """``uninstall``."""
    from runtime.cli.install import steps
    from runtime.cli.install.node import Node

    steps.uninstall(Node(args.node_root), _request(args), _say)
