"""What was installed under a name: which files were written, and what was there before.

Owns ``PREFIX/state/NAME.json``, and putting files back as they were.
"""

from __future__ import annotations

import hashlib
import json

from runtime.base.errors import Failed
from runtime.base.record import Record
from runtime.cli.install import toml_edit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.cli.install.node import Node

#: A file's digest as it was written -> nothing there before, or the path of a copy.
_NOTHING = ""


class Installed(Record):
    """``files`` are path -> (digest of what was written, path of what was before or nothing)."""

    name: str
    distro: str
    prefix: str
    copied_runsc: bool
    files: Mapping[str, tuple[str, str]]
    folders: tuple[str, ...] = ()
    """Those that were made for the files, innermost first."""
    pattern: str = ""


def path_of(prefix: str, name: str) -> str:
    return f"{prefix}/state/{name}.json"


def load(node: Node, prefix: str, name: str) -> Installed | None:
    """None if nothing is installed under that name.  Raises Failed for what isn't ours."""
    path = path_of(prefix, name)
    text = node.read(path)
    if text is None:
        return None
    try:
        values = json.loads(text)
        values["files"] = {key: (str(a), str(b)) for key, (a, b) in values["files"].items()}
        values["folders"] = tuple(map(str, values["folders"]))
        return Installed(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Failed(f"{path} can't be read: {error}") from None


def save(node: Node, state: Installed) -> None:
    values = {name: getattr(state, name) for name in state._fields}
    node.write(path_of(state.prefix, state.name), json.dumps(values, indent=1) + "\n")


def digest(text: str) -> str:
    return hashlib.sha512(text.encode("utf-8", "surrogateescape")).hexdigest()


def backup_of(path: str, name: str) -> str:
    return f"{path}.before-{name}"


def put_back(node: Node, state: Installed, path: str) -> None:
    """Have a file as it was before the installation; other changes since then are kept.

    Raises Failed if they can't be told from ours.
    """
    written, backup = state.files[path]
    text = node.read(path)
    before = node.read(backup) if backup else None
    if text is not None:
        if digest(text) == written and (before is not None or not backup):
            rest: str | None = before
        else:
            rest = _without_ours(state, path, text)
        if rest is None:
            node.remove(path)
        else:
            node.write(path, rest)
    if backup:
        node.remove(backup)


def _without_ours(state: Installed, path: str, text: str) -> str:
    """What somebody changed after us, without what is ours in it."""
    rest = toml_edit.without_block(text, state.name)
    if rest == text and not state.pattern and f"runtimes.{state.name}]" in text:
        raise Failed(f"{path} was changed since: remove the tables of {state.name} in it by hand")
    return rest
