"""The one table from the sentry's error texts to the domain's exceptions.

On the wire an error is only text.
"""

from __future__ import annotations

from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
    Unsupported,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_WORDS = 800


def translate(
    text: str, operation: str, container_id: str, pid: int = 0, args: Sequence[str] = ()
) -> RuntimeFault:
    """The exception that the sentry's error text stands for.

    The texts are those of gVisor's ``runsc/boot/{loader,controller}.go`` and ``pkg/urpc``, which
    differ in prefixes between releases.  Where none is known, the text is passed on as it is.
    """
    container = _quoted(text) or container_id
    subject = f"container {container!r}"
    if "unknown method" in text:
        return Unsupported(f"{operation}: {text}")
    if "initial working directory" in text:
        return InvalidRequest("process.cwd", text)
    if _speaks_of_program(text):
        return InvalidRequest("process.args", _program_text(text, args))
    if "no such process" in text:
        return NotFound("process", str(pid) if pid else container_id, text)
    if "different container" in text:
        return NotFound("process", str(pid), text)
    if "not started" in text or "isn't started" in text:
        return InvalidState(operation, subject, "created")
    if "has stopped" in text or "deleted container" in text or "is deleted" in text:
        return InvalidState(operation, subject, "stopped")
    if "already exists" in text:
        return AlreadyExists("container", container)
    if text.startswith("container") and ("not found" in text or "does not exist" in text):
        return NotFound("container", container, text)
    if "no TTY attached" in text:
        return InvalidState(operation, subject, "running without a terminal")
    return Failed(f"{operation} {subject}: {text}" if container else f"{operation}: {text}")


def without_dump(text: str) -> str:
    """The sentry's words on what can't be saved or loaded: without the stack of the one who tried,
    and with the ends only of the object that old releases print whole."""
    text = text.partition("\ngoroutine ")[0].strip().rstrip(":")
    return text if len(text) <= _MAX_WORDS else f"{text[:200]} ... {text[-300:]}"


def _quoted(text: str) -> str:
    """The id in ``container "id" ...``."""
    _, found, rest = text.partition('container "')
    return rest.partition('"')[0] if found else ""


def _speaks_of_program(text: str) -> bool:
    return "failed to load " in text or "error finding executable" in text


def _program_text(text: str, args: Sequence[str]) -> str:
    """The text with the words that users, and programs like kubectl, know from other runtimes."""
    name = args[0] if args else ""
    if "error finding executable" in text or (
        name and "/" not in name and "no such file or directory" in text
    ):
        return f'exec: "{name}": executable file not found in $PATH: {text}'
    return f'exec: "{name}": {text}' if name else text
