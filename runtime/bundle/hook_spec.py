"""The hooks of a ``config.json``: programs that run at given points of a container's life.

Owns reading and checking them.  Pure; ``hooks.py`` runs them.  The rules are those of the OCI
runtime specification, ``config.md`` "POSIX-platform Hooks".
"""

from __future__ import annotations

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.base.json_fields import Fields

PRESTART = "prestart"
CREATE_RUNTIME = "createRuntime"
CREATE_CONTAINER = "createContainer"
START_CONTAINER = "startContainer"
POSTSTART = "poststart"
POSTSTOP = "poststop"
#: In the order in which they come.
STAGES = (PRESTART, CREATE_RUNTIME, CREATE_CONTAINER, START_CONTAINER, POSTSTART, POSTSTOP)

#: Hooks of one stage.
MAX_HOOKS = 256
#: Bytes of a hook's arguments and environment together, well below what execve takes.
MAX_STRINGS = 1 << 20
_MAX_TIMEOUT = 0x7FFF_FFFF


class Hook(Record):
    """A program and what it gets.  ``timeout`` is in seconds, None for none of its own."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        """As given; a hook without arguments still has a name."""
        return self.args or (self.path,)


def read_hooks(fields: Fields | None) -> Mapping[str, tuple[Hook, ...]]:
    """The hooks by stage; a stage without any is left out.

    Raises InvalidRequest naming the member that is wrong.
    """
    if fields is None:
        return {}
    found = {}
    for stage in STAGES:
        hooks = tuple(_read_hook(each) for each in fields.all_fields(stage))
        if len(hooks) > MAX_HOOKS:
            raise fields.error(stage, f"has {len(hooks)} hooks, more than {MAX_HOOKS}")
        if hooks:
            found[stage] = hooks
    return found


def _read_hook(fields: Fields) -> Hook:
    path = fields.text("path")
    if not path:
        raise fields.error("path", "is missing")
    if not path.startswith("/"):
        raise fields.error("path", f"{path[:200]!r} is not absolute")
    hook = Hook(
        path=path,
        args=fields.texts("args"),
        env=fields.texts("env"),
        timeout=fields.integer("timeout", 1, _MAX_TIMEOUT),
    )
    for index, variable in enumerate(hook.env):
        # The value may be a secret, so it isn't repeated.
        if variable.find("=") < 1:
            raise fields.error(f"env[{index}]", "is not of the form NAME=value")
    if sum(map(len, hook.argv)) + sum(map(len, hook.env)) > MAX_STRINGS:
        raise fields.error("args", f"is, with the environment, larger than {MAX_STRINGS} bytes")
    return hook
