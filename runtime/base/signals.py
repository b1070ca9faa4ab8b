"""What we need of ``signal``, from the part of it that the interpreter has built in.

``signal`` itself makes an ``enum`` of each number.  Type checkers see the ordinary functions; the
numbers are plain integers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        SIG_BLOCK,
        SIG_IGN,
        SIG_UNBLOCK,
        SIGCHLD,
        SIGHUP,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGTERM,
        SIGUSR1,
        pidfd_send_signal,
        pthread_sigmask,
        set_wakeup_fd,
        signal,
    )
else:
    from _signal import (
        SIG_BLOCK,
        SIG_IGN,
        SIG_UNBLOCK,
        SIGCHLD,
        SIGHUP,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGTERM,
        SIGUSR1,
        pidfd_send_signal,
        pthread_sigmask,
        set_wakeup_fd,
        signal,
    )

__all__ = [
    "HANDLED",
    "SIGCHLD",
    "SIGHUP",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGTERM",
    "SIGUSR1",
    "SIG_BLOCK",
    "SIG_IGN",
    "SIG_UNBLOCK",
    "pidfd_send_signal",
    "pthread_sigmask",
    "set_wakeup_fd",
    "signal",
]

#: Those that a shim handles.
HANDLED = (SIGTERM, SIGINT, SIGUSR1, SIGCHLD, SIGHUP)
