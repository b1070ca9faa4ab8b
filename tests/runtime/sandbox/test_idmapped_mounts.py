"""Which mounts' sources a gofer is lent.  What it takes root for is tested in ``integration/``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.bundle.masked_paths import Covered
from runtime.bundle.spec import Spec, parse_spec
from runtime.host.fds import FdSet
from runtime.sandbox.idmapped_mounts import covering, lend

MAPS = [{"containerID": 0, "hostID": 1000, "size": 10}]


def spec_with(*mounts: dict[str, Any], namespaces: tuple[str, ...] = ()) -> Spec:
    spec = {
        "process": {"args": ["true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/mnt", "type": "bind", "source": "/", **m} for m in mounts],
        "linux": {"namespaces": [{"type": kind} for kind in namespaces]},
    }
    return parse_spec(json.dumps(spec).encode(), "/bundle")


def test_a_gofer_that_is_root_needs_no_help() -> None:
    spec = spec_with({})
    with FdSet() as fds:
        assert lend(spec, spec.mounts, "/place", fds) == (spec, None)


@pytest.mark.parametrize(
    "mount",
    [{"uidMappings": MAPS}, {"gidMappings": MAPS}, {"options": ["idmap"]}, {"options": ["ridmap"]}],
)
def test_id_maps_are_seen(mount: dict[str, Any]) -> None:
    assert spec_with(mount).mounts[0].id_mapped
    assert not spec_with({"uidMappings": []}).mounts[0].id_mapped


@pytest.mark.parametrize("name", ["uidMappings", "gidMappings"])
def test_an_id_map_of_users_or_groups_alone_is_refused(name: str) -> None:
    spec = spec_with({name: MAPS})
    with FdSet() as fds, pytest.raises(InvalidRequest, match="/mnt: maps users or groups alone"):
        lend(spec, spec.mounts, "/place", fds)


def test_more_mounts_than_anybody_means() -> None:
    spec = spec_with(*({} for _ in range(1001)), namespaces=("user",))
    with FdSet() as fds, pytest.raises(InvalidRequest, match="more than 1000 bind mounts"):
        lend(spec, spec.mounts, "/place", fds)


def test_a_special_file_in_a_volume_needs_a_recursive_mount() -> None:
    spec = spec_with({"options": ["bind"]}, {"options": ["rbind"]})
    for mount, fine in zip(spec.mounts, (False, True), strict=True):
        special = [Covered(path="/mnt/f", mount=mount, place="/f", masked=True)]
        if fine:
            assert callable(covering(special, spec, spec, None))
            continue
        with pytest.raises(Unsupported, match=r"/mnt/f: a special file in /mnt, .* with rbind"):
            covering(special, spec, spec, None)
