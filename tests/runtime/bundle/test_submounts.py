from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.spec import Spec, parse_spec
from runtime.bundle.submounts import MAX_SUBMOUNTS, separate


class Host:
    """Directories, and a mount table that says which of them are mount points."""

    def __init__(self, folder: Path) -> None:
        self.volume = folder / "a volume"
        self.table = folder / "mountinfo"
        self.points = ["/", str(folder)]
        self.volume.mkdir(mode=0o755)

    def mount(self, path: str) -> None:
        (self.volume / path).mkdir(parents=True)
        self.points.append(str(self.volume / path))

    def run(self, *options: str, mounts: Any = ()) -> tuple[list[tuple[str, str, str]], Any]:
        lines = [
            f"{number} 1 0:9 / {point} rw shared:1 - tmpfs tmpfs rw".replace(point, escape(point))
            for number, point in enumerate(self.points)
        ]
        self.table.write_text("\n".join(lines) + "\n")
        first = {"destination": "/mnt", "type": "bind", "source": str(self.volume)}
        value = {
            "process": {"args": ["true"]},
            "root": {"path": "/root"},
            "mounts": [{**first, "options": list(options)}, *mounts],
        }
        spec, notes = separate(parse_spec(json.dumps(value).encode(), "/b"), str(self.table))
        return self.shown(spec), notes

    def shown(self, spec: Spec) -> list[tuple[str, str, str]]:
        assert len(spec.mounts) == len(spec.raw["mounts"])
        prefix = str(self.volume)
        return [
            (m.destination, m.source.removeprefix(prefix), "ro" if m.read_only else "rw")
            for m in spec.mounts
        ]


def escape(text: str) -> str:
    return text.replace("\\", "\\134").replace(" ", "\\040")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_submounts_stay_writable(host: Host) -> None:
    for path in ("in side", "in side/deeper", "other/far\\"):
        host.mount(path)
    assert host.run("rbind", "ro", "rslave") == (
        [
            ("/mnt", "", "ro"),
            ("/mnt/in side", "/in side", "rw"),
            ("/mnt/other/far\\", "/other/far\\", "rw"),
        ],
        (),
    )


@pytest.mark.parametrize("options", [("rbind", "rro"), ("rbind", "rw"), ("bind", "ro"), ("rbind",)])
def test_not_for_others(host: Host, options: tuple[str, ...]) -> None:
    host.mount("inside")
    assert len(host.run(*options)[0]) == 1


def test_names_that_begin_alike(host: Host) -> None:
    host.points.append(str(host.volume) + "2")
    assert len(host.run("rbind", "ro")[0]) == 1


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_where_others_can_write(host: Host, mode: int) -> None:
    host.mount("by/inside")
    (host.volume / "by").chmod(mode)
    found, notes = host.run("rbind", "ro")
    assert (len(found), len(notes)) == (1, 1)


def test_too_many(host: Host) -> None:
    for number in range(MAX_SUBMOUNTS):
        host.mount(f"n{number}")
    assert len(host.run("rbind", "ro")[0]) == 1 + MAX_SUBMOUNTS
    host.mount("more")
    found, notes = host.run("rbind", "ro")
    assert (len(found), notes) == (1, ("what is mounted inside of /mnt is read-only, too",))


def test_mounts_of_the_spec_come_first(host: Host) -> None:
    host.mount("one")
    host.mount("two/three")
    over = [{"destination": f"/mnt/{name}", "type": "tmpfs"} for name in ("one", "two")]
    assert len(host.run("rbind", "ro", mounts=over)[0]) == 3
