"""Takes environment values and arguments out of what is to leave the host.  Pure.

What a container's config.json has of them is known, so each is found wherever it turns up; what
its processes were given later is in a sentry's log at certain places only.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

MARK = "<left out>"
#: Members of a specification that hold them, at whatever depth.
_SECRET = ("env", "args", "commandLine")
#: Annotations that say what a container is; others are their author's.
_KNOWN_ANNOTATIONS = ("io.kubernetes.cri.", "dev.gvisor.", "io.containerd.")
#: A shorter value would be found everywhere.
_SHORTEST = 5
#: Nor are these anybody's secret.
_WORDS = frozenset(("false", "production", "release", "debug", "info", "warning", "error"))
#: Where a sentry's log tells of them: a specification that is printed, system calls and starts.
_OPENING = re.compile(r'"(?:env|args|commandLine)": \[\s*$')
_CLOSING = re.compile(r"^[^\"]*\],?\s*$")
_CALLS = re.compile(
    r"(?i)\b(execve(?:at)?\(|exec(?:ve)?:|args(?::|=)|argv(?::|=)|envv?(?::|=)|environ|spec(?::|=))"
)

#: A system call of a program's, of which the log has what is read and written in quotes.
_TRACED = re.compile(r"\[ *\d+: *\d+\] .* [EX] \w+\(")
#: What runsc's own programs were started with: flags and numbers of files.
_OWN = re.compile(r"\bArgs: \[runsc-\w+ ")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"(?:\.\.\.)?')


def secrets_of(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the environments and arguments of these containers have, the longest first."""
    found: set[str] = set()
    for spec in specs:
        process = spec.get("process")
        if not isinstance(process, dict):
            continue
        for text in _texts(process.get("env")):
            _, _, value = text.partition("=")
            found.add(text)
            # A path tells nothing, and cutting it out of the rest would hide much.
            if len(value) >= _SHORTEST and not value.startswith("/"):
                found.add(value)
        args = _texts(process.get("args"))
        found.update(text for text in args[1:] if len(text) >= _SHORTEST)
    found = {text for text in found if len(text) >= _SHORTEST and text.lower() not in _WORDS}
    return sorted(found, key=lambda t: (-len(t), t))


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def spec(value: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without them: of variables the names are left, of arguments the count."""
    cleaned = _clean(value)
    assert isinstance(cleaned, dict)
    annotations = cleaned.get("annotations")
    if isinstance(annotations, dict):
        cleaned["annotations"] = {
            name: text if name.startswith(_KNOWN_ANNOTATIONS) else MARK
            for name, text in annotations.items()
        }
    return cleaned


def _clean(value: object) -> object:
    if isinstance(value, dict):
        return {
            name: _cut(name, each) if name in _SECRET else _clean(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return value


def _cut(name: str, value: object) -> object:
    if name == "env":
        return [f"{text.partition('=')[0]}={MARK}" for text in _texts(value)]
    if isinstance(value, list):
        return [*value[:1], *[MARK] * (len(value) - 1)]
    return MARK


def text(lines: str, secrets: Iterable[str]) -> str:
    """Lines of a log without them."""
    out = []
    inside = False
    for line in lines.splitlines():
        if inside:
            inside = not _CLOSING.match(line)
            if inside:
                continue
        elif _OPENING.search(line):
            inside = True
            line += MARK
        else:
            match = _CALLS.search(line)
            if match is not None and not _OWN.search(line):
                line = line[: match.end()] + MARK
            elif _TRACED.search(line):
                line = _QUOTED.sub(MARK, line)
        out.append(line)
    whole = "\n".join(out) + ("\n" if out else "")
    for secret in secrets:
        whole = whole.replace(secret, MARK)
        if "\\" in secret or '"' in secret or not secret.isascii():
            # As a log in JSON has it.
            import json

            whole = whole.replace(json.dumps(secret)[1:-1], MARK)
    return whole
