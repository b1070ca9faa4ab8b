"""Debian's Prometheus on a folder of its own, scraping what a test tells it to."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.base.waiting import until

BIN = peers.PEERS / "prometheus" / "bin"
_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: gvisor
  static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A server that scrapes ``target`` each second; gone at the end of the context."""

    def __init__(self, folder: Path, target: str) -> None:
        folder.mkdir()
        (folder / "config.yml").write_text(_CONFIG.format(target=target))
        self._log = folder / "log"
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    BIN / "prometheus",
                    f"--config.file={folder}/config.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Prometheus:
        try:
            until(self._scraped, 60, "Prometheus has scraped")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _scraped(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            return self.value("up") == 1
        except (OSError, ValueError):
            return False  # it is not ready yet, or has no sample yet

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector of an instant query.  Raises for one that is none."""
        url = f"{self._url}/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{expression}: {error.read().decode()}") from None
        found = answer["data"]["result"]
        assert isinstance(found, list)
        return found

    def value(self, expression: str) -> float:
        """The one value of a query."""
        [found] = self.query(expression)
        return float(found["value"][1])

    def target(self) -> dict[str, Any]:
        """What it says of the target: health, lastError, lastScrapeDuration."""
        with urllib.request.urlopen(f"{self._url}/targets", timeout=30) as reply:
            [found] = json.load(reply)["data"]["activeTargets"]
        assert isinstance(found, dict)
        return found

    def complaints(self) -> list[str]:
        """What it found wrong with the scrapes."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if "level=warn" in line or "level=error" in line]


def check(page: str) -> list[str]:
    """What promtool says of a page.  Raises AssertionError if it can't be read at all."""
    done = subprocess.run(
        [BIN / "promtool", "check", "metrics"], input=page, capture_output=True, text=True
    )
    # 3: there is something to be said of the names.
    assert done.returncode in (0, 3), done
    return done.stderr.splitlines()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
