"""Finds the containers that a command line names.

Owns where state is looked for.  Without --root that is gvctl's own root and those of containerd's
namespaces, as the shim lays them out.
"""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest, NotFound
from runtime.cli.arguments import OWN_ROOT
from runtime.state.loaded import StoredContainer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

#: One directory for each of containerd's namespaces.
SHIM_ROOT = "/run/containerd/runsc"


def roots(args: argparse.Namespace) -> list[str]:
    """The directories to look in, in order.  Raises InvalidRequest."""
    if args.root:
        return [os.path.abspath(args.root)]
    bases = [_configured_root(args), SHIM_ROOT]
    if args.namespace:
        if "/" in args.namespace or args.namespace in (".", ".."):
            raise InvalidRequest("--namespace", f"{args.namespace!r} is no namespace")
        return list(dict.fromkeys(f"{base}/{args.namespace}" for base in bases if base))
    found = [OWN_ROOT]
    for base in dict.fromkeys(filter(None, bases)):
        try:
            with os.scandir(base) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError:
            continue
        found += (f"{base}/{name}" for name in names)
    return list(dict.fromkeys(found))


def _configured_root(args: argparse.Namespace) -> str:
    from runtime.cli.settings import document

    root = document(args)[1].get("root", "")
    return str(root).rstrip("/")


def new_root(args: argparse.Namespace) -> str:
    """Where a container is made."""
    return os.path.abspath(args.root) if args.root else OWN_ROOT


def namespace_of(root: str) -> str:
    """How people call a root: the namespace, or where it is."""
    return "" if root == OWN_ROOT else os.path.basename(root)


def find(args: argparse.Namespace, ident: str = "") -> StoredContainer:
    """The container that the command line names.

    Raises NotFound, InvalidRequest if several are called so.
    """
    ident = ident or args.id
    found: list[StoredContainer] = []
    for root in roots(args):
        try:
            found.append(StoredContainer.load(root, ident))
        except NotFound:
            continue
    exact = [each for each in found if each.id == ident]
    found = exact or found
    if not found:
        raise NotFound("container", ident, f'container "{ident}" does not exist')
    if len(found) > 1:
        places = ", ".join(each.root for each in found)
        raise InvalidRequest("container id", f'"{ident}" is in several roots: {places}')
    return found[0]


def every(args: argparse.Namespace) -> tuple[list[StoredContainer], list[str]]:
    """All containers, and what is wrong with those that can't be read."""
    containers: list[StoredContainer] = []
    problems: list[str] = []
    for root in roots(args):
        some, wrong = StoredContainer.list(root)
        containers += some
        problems += wrong
    return containers, problems
