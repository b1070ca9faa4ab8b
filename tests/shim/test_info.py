import json

import pytest

from protos import introspection_pb2
from runtime.base.version import VERSION
from runtime.bundle import features as claims
from shim.base import options
from shim.ttrpc import protobuf
from tests.shim.process import Shim


@pytest.fixture
def shim(tmp_path: object) -> object:
    shim = Shim(tmp_path)  # type: ignore[arg-type]
    yield shim
    shim.close()


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"\xff\xff",
        protobuf.any_message("runtimeoptions.v1.Options", protobuf.bytes_field(2, "/no/such/file")),
    ],
)
def test_never_fails(shim: Shim, stdin: bytes) -> None:
    result = shim.run(["-info"], shim.directory, stdin)
    assert (result.returncode, result.stderr) == (0, b"")
    message = introspection_pb2.RuntimeInfo.FromString(result.stdout)
    assert message.name == "io.containerd.gvisor.v2"
    assert message.version.version == VERSION
    assert message.HasField("options") == stdin.startswith(b"\x0a")
    type_url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert message.features.type_url == type_url
    features = json.loads(message.features.value)
    assert features["linux"]["seccomp"]["enabled"] is True
    assert "rro" in features["mountOptions"]
    assert "CAP_SYS_ADMIN" in features["linux"]["capabilities"]


def test_options_are_echoed_and_count(shim: Shim) -> None:
    body = b'[runsc_config]\noci-seccomp = "false"\n'
    stdin = protobuf.any_message("runtimeoptions.v1.Options", protobuf.bytes_field(3, body))
    result = shim.run(["-info"], shim.directory, stdin)
    message = introspection_pb2.RuntimeInfo.FromString(result.stdout)
    assert message.options.SerializeToString() == stdin
    assert json.loads(message.features.value)["linux"]["seccomp"]["enabled"] is False
    assert options.is_known(message.options.type_url)


def test_claims_have_the_types_of_the_specification() -> None:
    features = claims.features({}, "v2")
    assert all(isinstance(features[key], list) for key in ("hooks", "mountOptions"))
    linux = features["linux"]
    assert isinstance(linux, dict)
    # What the kubelet wants to see for pods with `hostUsers: false`.
    assert linux["mountExtensions"]["idmap"]["enabled"] is True
    assert "user" in linux["namespaces"]
    assert claims.CLAIMS["linux"] is not linux
