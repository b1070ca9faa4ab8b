"""A command on a pseudo-terminal, driven like a person would drive it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time


class Terminal:
    """Runs `command` on a terminal of its own; a context manager that leaves nothing running."""

    def __init__(self, command: list[str], rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.output = ""
        self.resize(rows, columns)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, timeout: float = 15) -> str:
        """Read until `text` was seen, and return all up to it; what follows stays for the next."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} not seen; got {self.output!r}")
        at = self.output.index(text) + len(text)
        seen, self.output = self.output[:at], self.output[at:]
        return seen

    def press_until(self, key: str, text: str, timeout: float = 15) -> None:
        """Press a key, now and again, until `text` is seen.

        Not faster than a person: a storm of ^C breaks busybox's shell.
        """
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} not seen after {key!r}; got {self.output!r}")
            self.write(key)
            patience = time.monotonic() + 1.0
            while text not in self.output and self._read(patience - time.monotonic()):
                continue
        self.output = ""

    def resize_until(self, rows: int, columns: int, text: str, timeout: float = 15) -> None:
        """Change the size, now and again, until `text` is seen.

        ctr passes on only those changes that come once it listens for them, some time after the
        first output.
        """
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} not seen; got {self.output!r}")
            self.resize(rows + 1, columns)
            self.resize(rows, columns)
            self._read(0.5)
        self.output = ""

    def wait(self, timeout: float = 20) -> int:
        """Read to the end and return the command's exit status.

        It may take as long as it likes while something comes every `timeout` seconds.
        """
        while self._read(timeout):
            pass
        return self._process.wait(timeout)

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0, timeout))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
