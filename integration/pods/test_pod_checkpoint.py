"""The checkpoint of a whole pod, by the service that is proposed to containerd (KEP-5823).

No containerd calls it yet, so a client of our own does, between the same calls of CRI as its
RestorePod would make: the pod is run, its containers are made, the shim is asked, they are started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.ttrpc import Client, Refused
from integration.harness.clients.wire import Schema
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode

pytestmark = pytest.mark.gvisor
SERVICE = "containerd.runtime.sandbox.v1.Checkpoint"
ANY = Schema("type_url:1 value:2:bytes")
SAVE = Schema(
    "sandbox_id:1 output_path:2 sandbox_config:3:@ containers:4:@* options:5:map",
    ANY,
    Schema("id:1 name:2 config:3:@ status:4:@", ANY, ANY),
)
RESTORE = Schema(
    "sandbox_id:1 checkpoint_path:2 sandbox_config:3:@ containers:4:@* options:5:map",
    ANY,
    Schema("id:1 name:2 config:3:@", ANY),
)
RESTORED = Schema("containers:1:@*", Schema("name:1 task_checkpoint_image:2"))
COUNT = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; echo $n >/dev/shm/n; sleep 0.05; done")
READ = ("sh", "-c", "echo kept >/tmp/kept; exec sleep 1000")


@pytest.fixture(autouse=True)
def able(pods: PodNode) -> None:
    if pods.daemon.release < (2, 1):
        pytest.skip("containerd before 2.1 asks no shim for sandboxes")


def ask(pod: Pod, method: str, payload: bytes) -> bytes:
    with Client(footprint.socket_of(pod.node.daemon, pod.id)) as client:
        return client.raw(SERVICE, method, payload, 60)()


def save(pod: Pod, path: Path, **members: str) -> None:
    ask(pod, "Checkpoint", saving(pod, path, **members))


def saving(pod: Pod, path: Path, **members: str) -> bytes:
    containers = [{"id": ident, "name": name} for name, ident in members.items()]
    return SAVE.encode(sandbox_id=pod.id, output_path=str(path), containers=containers)


def restore(pod: Pod, path: Path, **members: str) -> list[tuple[str, str]]:
    containers = [{"id": ident, "name": name} for name, ident in members.items()]
    request = RESTORE.encode(sandbox_id=pod.id, checkpoint_path=str(path), containers=containers)
    found = RESTORED.decode(ask(pod, "Restore", request)).containers
    return [(each.name, each.task_checkpoint_image) for each in found]


def numbers(pod: Pod, container: str) -> list[int]:
    return [int(line) for line in pod.log(container).split()]


def test_a_pod_is_saved_and_restored_into_a_new_one(pods: PodNode, tmp_path: Path) -> None:
    # All see each other's processes, by a namespace that CRI names by the sandbox's pid.
    linux = {"security_context": {"namespace_options": {"pid": 0}}}
    pod = pods.pod(variant="shim", linux=linux)
    counter, reader = pod.start(*COUNT, name="counter"), pod.start(*READ, name="reader")
    pod.wait_log(counter, "\n5\n")
    image = tmp_path / "image"
    before = int(pods.exec(reader, "cat", "/dev/shm/n").out)
    save(pod, image, counter=counter, reader=reader)
    after = int(pods.exec(reader, "cat", "/dev/shm/n").out)
    until(lambda: numbers(pod, counter)[-1] > after, 10, "the first pod goes on")
    pod.remove()

    again = pods.pod(variant="shim", linux=linux)
    counter, reader = (
        again.create(*command, name=name)
        for name, command in (("counter", COUNT), ("reader", READ))
    )
    pid = again.info["pid"]
    prepared = restore(again, image, counter=counter, reader=reader)
    assert prepared == [("counter", ""), ("reader", "")]
    assert again.status.state == cri.READY and again.info["pid"] != pid
    for each in (counter, reader):
        pods.call("StartContainer", 60, container_id=each)
    until(lambda: len(numbers(again, counter)) > 3, 20, "it counts on")
    # It is where it was, not where it began; and so is the pod's shared memory.
    assert before <= numbers(again, counter)[0] <= after + 1
    assert int(pods.exec(reader, "cat", "/dev/shm/n").out) > before
    assert pods.exec(reader, "cat", "/tmp/kept").out == "kept\n"
    later = again.start("sleep", "1000", name="later")
    assert "echo $n" in pods.exec(later, "ps", "-o", "args").out
    seen = numbers(again, counter)
    assert seen == list(range(seen[0], seen[-1] + 1))
    assert len(again.gofers()) == 3 + len(again.own_gofers())
    # Who has waited for its end since it was run is told now.
    again.stop()
    assert again.status.state == cri.NOT_READY
    assert pods.wait_exited(reader).exit_code == 137
    again.remove()
    pods.assert_clean()


def test_what_is_refused(pods: PodNode, tmp_path: Path) -> None:
    """With clear words, and all goes on: source, image and the pod to be restored."""
    pod = pods.pod(variant="shim")
    one, two = pod.start(*READ, name="one"), pod.start(*READ, name="two")
    image = tmp_path / "image"
    save(pod, image, one=one, two=two)

    def refusal(method: str, payload: bytes, of: Pod = pod) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            ask(of, method, payload)
        return caught.value.code, caught.value.message

    elsewhere = tmp_path / "elsewhere"
    for payload, code, words in (
        (saving(pod, image, one=one, two=two), 6, "already exists"),
        (saving(pod, elsewhere, one=one), 12, two),
        (saving(pod, elsewhere), 3, "none is named"),
        (saving(pod, elsewhere, one=one, two=two, three="0123"), 5, "0123"),
        (saving(pod, elsewhere, one=two, two=one), 3, "is called"),
        (saving(pod, Path("relative"), one=one, two=two), 3, "absolute"),
        (SAVE.encode(sandbox_id="0123", output_path="/x"), 5, "0123"),
        (
            SAVE.encode(sandbox_id=pod.id, output_path=str(elsewhere), options={"turbo": "1"}),
            3,
            "turbo",
        ),
    ):
        got = refusal("Checkpoint", payload)
        assert got[0] == code and words in got[1], got
    assert not elsewhere.exists()
    payload = RESTORE.encode(
        sandbox_id=pod.id, checkpoint_path=str(image), containers=[{"id": "x", "name": "one"}]
    )
    assert refusal("Restore", payload)[0] == 9

    again = pods.pod(variant="shim")
    created = again.create(*READ, name="one")
    pid = again.info["pid"]

    def restoring(path: Path, **values: Any) -> bytes:
        containers = [{"id": created, "name": "one"}]
        fields = {"sandbox_id": again.id, "containers": containers, **values}
        return RESTORE.encode(checkpoint_path=str(path), **fields)

    for payload, code, words in (
        (restoring(image), 3, "one, two, not one"),
        (restoring(elsewhere), 5, str(elsewhere)),
        (restoring(image, containers=[]), 3, "none is named"),
        (restoring(image, options={"turbo": "1"}), 3, "turbo"),
    ):
        got = refusal("Restore", payload, again)
        assert got[0] == code and words in got[1], got
    assert again.status.state == cri.READY and again.info["pid"] == pid
    pods.call("StartContainer", container_id=created)
    for each in (one, two, created):
        assert pods.exec(each, "echo", "here").out == "here\n"
