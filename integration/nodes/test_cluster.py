"""What a cluster gets: manifests that Kubernetes' API knows, and what their container does."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from integration.harness.base import peers

CLUSTER = peers.CHECKOUT / "deploy/cluster"
OVERLAYS = ("install", "verify", "uninstall")


def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects of a kustomization, as kubectl renders them."""
    done = subprocess.run(
        [peers.PEERS / "kubectl/bin/kubectl", "kustomize", CLUSTER / overlay],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def check(value: Any, kind: str, path: str) -> None:
    """Raise AssertionError where a value isn't what the API's schema of that type says."""
    from kubernetes import client

    if many := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
        assert isinstance(value, list), path
        for index, each in enumerate(value):
            check(each, many[1], f"{path}[{index}]")
    elif named := re.fullmatch(r"[dD]ict[(\[]str, (.*)[)\]]", kind):
        assert isinstance(value, dict), path
        for key, each in value.items():
            check(each, named[1], f"{path}.{key}")
    elif kind in ("str", "datetime"):
        assert isinstance(value, str), path
    elif kind in ("int", "bool", "float"):
        assert type(value).__name__ == kind, path
    elif kind != "object":
        model = getattr(client, kind)
        names = {name: attribute for attribute, name in model.attribute_map.items()}
        assert isinstance(value, dict) and set(value) <= set(names), f"{path}: {set(value)}"
        # What has to be there is said by its constructor.
        model(**{names[key]: each for key, each in value.items()})
        for key, each in value.items():
            check(each, model.openapi_types[names[key]], f"{path}.{key}")


#: apiVersion and kind -> the name of the schema.
KINDS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
    ("batch/v1", "Job"): "V1Job",
    ("node.k8s.io/v1", "RuntimeClass"): "V1RuntimeClass",
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_knows_every_field(overlay: str) -> None:
    objects = rendered(overlay)
    assert objects
    for each in objects:
        name = KINDS[each["apiVersion"], each["kind"]]
        check(each, name, f"{each['kind']}/{each['metadata']['name']}")


@pytest.mark.parametrize("wrong", ["unknown field", "wrong type", "missing field"])
def test_the_check_sees_what_is_wrong(wrong: str) -> None:
    (job,) = rendered("verify")
    pod = job["spec"]["template"]["spec"]
    if wrong == "unknown field":
        pod["runtimeClass"] = "gvisor"
    elif wrong == "wrong type":
        pod["containers"][0]["image"] = 7
    else:
        del pod["containers"][0]["name"]
    with pytest.raises((AssertionError, ValueError)):
        check(job, "V1Job", "job")


def by_kind(overlay: str) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in rendered(overlay)}


def test_what_belongs_together_agrees() -> None:
    found = by_kind("install")
    daemon, runtime = found["DaemonSet"]["spec"], found["RuntimeClass"]
    pod = daemon["template"]["spec"]
    labels = daemon["selector"]["matchLabels"]
    assert labels.items() <= daemon["template"]["metadata"]["labels"].items()
    assert runtime["scheduling"]["nodeSelector"] == pod["nodeSelector"]
    assert (
        by_kind("verify")["Job"]["spec"]["template"]["spec"]["runtimeClassName"]
        == (runtime["metadata"]["name"])
    )
    # It has no part in Kubernetes' API.
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & set(found)
    assert pod["automountServiceAccountToken"] is False
    overhead = runtime["overhead"]["podFixed"]["memory"]
    assert re.search(
        rf"podFixed:\n\s+memory: {overhead}\n", (peers.CHECKOUT / "README.md").read_text()
    )
    args = by_kind("uninstall")["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args == ["uninstall"]
    image = (peers.CHECKOUT / "deploy/Dockerfile").read_text()
    assert 'ENTRYPOINT ["/bin/sh", "/usr/local/bin/gvisor-node"]' in image
