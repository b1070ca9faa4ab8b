"""A host that has run out of something, at a call that a test chooses.

Counts the calls that take a descriptor, memory of the kernel's or a thread, as the code under test
makes them, and fails one of them, or several in a row.  So a test can make a scene once to learn
how many there are, and then again for each of them.
"""

from __future__ import annotations

import _socket
import errno
import os
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from runtime.host import fds, spawn
from runtime.host.reactor import Reactor
from runtime.runsc import urpc
from runtime.sandbox import gofer, sentry

#: What a host says: no descriptor (of ours, of anybody's), no memory, and no thread.
ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_OS = ("open", "pipe2", "dup", "eventfd", "pidfd_open", "memfd_create", "listdir", "scandir")
#: The threads of the code under test; a test's fakes have others.
_OURS = ("MainThread", "reactor", "worker")


class Scarcity:
    """Installed for the rest of a test; nothing fails before ``fail``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._from = self._to = 0
        self._errno = 0
        for name in _OF_OS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        sockets: Any = types.SimpleNamespace(**vars(_socket))
        for name in ("socket", "socketpair"):
            setattr(sockets, name, self._wrap(name, getattr(_socket, name)))
        for module in (spawn, fds, gofer, sentry, urpc):
            monkeypatch.setattr(module, "_socket", sockets)
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith(_OURS):
                self._take("thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    def watch(self, reactor: Reactor) -> None:
        """Count what a reactor takes of the kernel as well."""
        reactor._epoll = _Epoll(reactor._epoll, self)  # type: ignore[assignment]

    def fail(self, at: int, times: int, code: int) -> None:
        """Have ``times`` calls fail from number ``at`` (0 is the next one) on; counts afresh."""
        with self._lock:
            self.calls = []
            self._from, self._to, self._errno = at, at + times, code

    def relent(self) -> None:
        """The host has enough of all again."""
        self.fail(0, 0, 0)

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self._take(name)
            return real(*arguments, **more)

        return call

    def _take(self, name: str) -> None:
        if not threading.current_thread().name.startswith(_OURS):
            return
        with self._lock:
            number = len(self.calls)
            self.calls.append(name)
            if not self._from <= number < self._to:
                return
            code = self._errno
        if name == "thread":
            raise RuntimeError("can't start new thread")
        raise OSError(code, os.strerror(code))


class _Epoll:
    """An epoll whose registrations count."""

    def __init__(self, real: Any, scarcity: Scarcity) -> None:
        self._real, self._scarcity = real, scarcity

    def register(self, fd: int, events: int) -> None:
        self._scarcity._take("register")
        self._real.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
