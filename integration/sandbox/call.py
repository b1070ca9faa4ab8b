"""One call of the container library in a process of its own, which then ends.

    python -m integration.sandbox.call '{"call": "create", "id": ..., ...}'

What it says on its standard error is the error; its exit status is the call's.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from runtime.base.errors import RuntimeFault
from runtime.runsc.config import RunscConfig
from runtime.state.forward_signals import forward_signals
from runtime.state.loaded import StoredContainer
from runtime.task import library


def main(wanted: dict[str, Any]) -> int:
    call = wanted.pop("call")
    config = RunscConfig(
        binary=wanted.pop("binary"),
        root=wanted.pop("root"),
        flags=wanted.pop("flags"),
        # The tests have runsc's own commands look at what is made here.
        abstract_control_socket=True,
        allow_cgroup_parent=True,
    )
    cache = wanted.pop("cache_dir")
    stdio = tuple(wanted.pop("stdio", (0, 1, 2)))
    if call == "start":
        container = StoredContainer.load(config.root, wanted.pop("id"))
        library.start(container, config, cache_dir=cache, stdio=stdio, **wanted)  # type: ignore[arg-type]
        return 0
    if call == "destroy":
        StoredContainer.load(config.root, wanted["id"]).destroy(force=True)
        return 0
    foreground = wanted.pop("foreground", False)
    forward = wanted.pop("forward", False)
    detach, keep = wanted.pop("detach", False), wanted.pop("keep", False)
    wanted["pass_fds"] = {int(k): v for k, v in wanted.pop("pass_fds", {}).items()}
    request = library.Request(config=config, cache_dir=cache, stdio=stdio, **wanted)  # type: ignore[arg-type]
    if call == "create":
        library.create(request)
        return 0

    def waiting(container: StoredContainer) -> Any:
        stop = forward_signals(container, 0, foreground) if forward else lambda: None
        os.write(2, b"waiting\n")
        return stop

    return library.run(request, detach=detach, keep=keep, waiting=waiting)


if __name__ == "__main__":
    try:
        status = main(json.loads(sys.argv[1]))
    except RuntimeFault as fault:
        print(f"{type(fault).__name__}: {fault}", file=sys.stderr)
        status = 125
    sys.exit(status)
