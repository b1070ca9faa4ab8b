from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.bundle.spec import Spec, parse_spec
from runtime.task.callers import looks_pids_up


def hostname(source: str) -> list[dict[str, Any]]:
    return [{"destination": "/etc/hostname", "type": "bind", "source": source}]


def spec_with(**members: Any) -> Spec:
    value = {"process": {"args": ["true"]}, "root": {"path": "/"}, **members}
    return parse_spec(json.dumps(value).encode(), "/bundle")


@pytest.mark.parametrize(
    ("namespace", "spec", "wanted"),
    [
        ("moby", spec_with(), True),
        ("moby", None, True),
        ("else", spec_with(mounts=hostname("/var/lib/docker/containers/one/hostname")), True),
        ("default", spec_with(annotations={"nerdctl/namespace": "default"}), True),
        ("default", spec_with(annotations={"other/namespace": "moby"}), False),
        ("else", spec_with(mounts=hostname("/var/lib/docker/containers/two/hostname")), False),
        ("k8s.io", None, False),
    ],
)
def test_who_looks_pids_up_on_the_host(namespace: str, spec: Spec | None, wanted: bool) -> None:
    assert looks_pids_up(namespace, "one", spec) is wanted
