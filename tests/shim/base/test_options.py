import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import runc_pb2, runtimeoptions_pb2
from runtime.base import toml_subset
from runtime.base.errors import InvalidRequest
from runtime.runsc import options_file
from shim.base import options

CRI = "runtimeoptions.v1.Options"
RUNC = "containerd.runc.v1.Options"

GVISOR_FILE = """\
# as in gVisor's documentation
binary_name = "/opt/runsc"
root = '/run/mine/' # ours
log_path = "/var/log/%ID%/"
log_level = "debug"
shim_cgroup = "/shims"
io_uid = 10
grouping = false
enable_hibernate_server = false
[runsc_config]
  platform = "systrap"
  debug = true
  num-network-channels = 4
"""


@pytest.fixture(autouse=True)
def no_global_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        options, "GLOBAL_FILES", (str(tmp_path / "first.toml"), str(tmp_path / "second.toml"))
    )
    return tmp_path


def cri(path: str = "", body: bytes = b"") -> bytes:
    message = runtimeoptions_pb2.Options(config_path=path, config_body=body)
    return message.SerializeToString()


def test_defaults() -> None:
    config = options.decode("", b"", "k8s.io")
    assert (config.binary, config.root, config.grouping) == (
        "runsc",
        "/run/containerd/runsc/k8s.io",
        True,
    )
    assert config.flags == {}


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts in place of the host's, must be there, and what a call brings goes first."""
    (tmp_path / "first.toml").write_text('binary_name = "host"')
    mine = tmp_path / "mine.toml"
    monkeypatch.setenv("GVISOR_SHIM_OPTIONS", str(mine))
    with pytest.raises(InvalidRequest, match="no such file"):
        options.decode("", b"", "ns")
    mine.write_text('binary_name = "mine"')
    assert options.decode("", b"", "ns").binary == "mine"
    assert options.decode(RUNC, b"", "ns").binary == "mine"
    assert options.decode(CRI, cri(body=b'binary_name = "call"'), "ns").binary == "call"
    monkeypatch.setenv("GVISOR_SHIM_OPTIONS", "mine.toml")
    with pytest.raises(InvalidRequest, match="no such file"):
        options.decode("", b"", "ns")


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "cri."])
def test_everything(tmp_path: Path, inline: bool, prefix: str) -> None:
    if inline:
        value = cri(body=GVISOR_FILE.encode())
    else:
        (tmp_path / "c.toml").write_text(GVISOR_FILE)
        value = cri(path=str(tmp_path / "c.toml"))
    config = options.decode(prefix + CRI, value, "ns", container_id="abc")
    assert config.binary == "/opt/runsc"
    assert config.root == "/run/mine/ns"
    assert config.log_path == "/var/log/abc/runsc-shim-abc.log"
    assert config.log_level == "debug"
    assert config.shim_cgroup == "/shims"
    assert (config.io_uid, config.io_gid) == (10, 0)
    assert config.grouping is False
    assert config.flags == {"platform": "systrap", "debug": "true", "num-network-channels": "4"}
    start = options.start_options(prefix + CRI, value)
    assert start == options.StartOptions(grouping=False, shim_cgroup="/shims")


def test_first_global_file_wins_and_options_beat_it(no_global_files: Path) -> None:
    (no_global_files / "second.toml").write_text('binary_name = "two"')
    assert options.decode("", b"", "ns").binary == "two"
    assert options.decode(CRI, b"", "ns").binary == "two"
    (no_global_files / "first.toml").write_text('log_level = "info"')
    assert options.decode("", b"", "ns").binary == "runsc"
    body = b'binary_name = "three"'
    assert options.decode(CRI, cri(body=body), "ns").binary == "three"


def test_runc_options_over_the_global_file(no_global_files: Path) -> None:
    (no_global_files / "first.toml").write_text(
        'binary_name = "/x/runsc"\nroot="/r"\n[runsc_config]\nplatform="kvm"'
    )
    message = runc_pb2.Options(shim_cgroup="/g", io_uid=5, io_gid=6, systemd_cgroup=True)
    config = options.decode(RUNC, message.SerializeToString(), "ns")
    assert (config.binary, config.root) == ("/x/runsc", "/r/ns")
    assert (config.shim_cgroup, config.io_uid, config.io_gid) == ("/g", 5, 6)
    assert config.systemd_cgroup is True
    assert config.flags == {"platform": "kvm"}
    assert options.start_options(RUNC, message.SerializeToString()).shim_cgroup == "/g"


@pytest.mark.parametrize("name", ["runc", "/usr/bin/crun"])
def test_another_runtimes_binary_is_not_taken(name: str) -> None:
    message = runc_pb2.Options(binary_name=name, root="/run/containerd/runc")
    config = options.decode(RUNC, message.SerializeToString(), "ns")
    assert (config.binary, config.root) == ("runsc", "/run/containerd/runsc/ns")


def test_a_binary_of_our_own_is_taken() -> None:
    message = runc_pb2.Options(binary_name="/opt/runsc-2024", root="/r")
    config = options.decode(RUNC, message.SerializeToString(), "ns")
    assert (config.binary, config.root) == ("/opt/runsc-2024", "/r/ns")


def test_unknown_type_means_defaults() -> None:
    assert options.decode("some.Options", b"\xff", "ns").binary == "runsc"
    assert options.start_options("some.Options", b"\xff") == options.StartOptions()


@pytest.mark.parametrize(
    ("body", "key", "why"),
    [
        ("binary_name = 3", "binary_name", "must be a string"),
        ('root = "relative"', "root", "is not an absolute path"),
        ('log_level = "loud"', "log_level", "is none of"),
        ("io_uid = -1", "io_uid", "must be an integer"),
        ("io_uid = true", "io_uid", "must be an integer"),
        ('grouping = "yes"', "grouping", "must be true or false"),
        ("runsc_config = 1", "runsc_config", "must be a table"),
        ("[runsc_config]\nplatform = [1]", "runsc_config.platform", "must be a string"),
        ('[runsc_config]\n"--debug" = "1"', "runsc_config.--debug", "is not the name of a flag"),
        ('[runsc_config]\n"a=b" = "1"', "runsc_config.a=b", "is not the name of a flag"),
        ("binary_name =", "", "is not TOML"),
        ("\udcff", "", "is not UTF-8"),
    ],
)
def test_errors_name_file_key_and_reason(tmp_path: Path, body: str, key: str, why: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(body.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidRequest) as caught:
        options.decode(CRI, cri(path=str(path)), "ns")
    assert caught.value.field == (f"{path}: {key}" if key else str(path))
    assert why in caught.value.why


def test_an_unknown_key_is_an_error_that_names_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('binary_nmae = "b"\n')
    with pytest.raises(InvalidRequest) as caught:
        options.decode(CRI, cri(path=str(path)), "ns")
    assert str(caught.value) == f"{path}: binary_nmae: is no option of this shim"


def test_keys_of_other_programs_in_the_same_table_have_no_effect() -> None:
    body = b'TypeUrl = "x"\nenable_hibernate_server = true\nbinary_name = "b"'
    assert options.decode(CRI, cri(body=body), "ns").binary == "b"


def test_missing_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        options.decode(CRI, cri(path=str(tmp_path / "none")), "ns")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        options.decode(CRI, cri(path="/dev/zero"), "ns")
    for module in (options, options_file):
        monkeypatch.setattr(module, "MAX_FILE", 10)
    (tmp_path / "big").write_text("#" * 11)
    with pytest.raises(InvalidRequest, match="larger than 10 bytes"):
        options.decode(CRI, cri(path=str(tmp_path / "big")), "ns")
    with pytest.raises(InvalidRequest, match="larger than 10 bytes"):
        options.decode(CRI, cri(body=b"#" * 11), "ns")


@pytest.mark.parametrize("type_url", [CRI, RUNC])
def test_broken_message(type_url: str) -> None:
    with pytest.raises(InvalidRequest, match="runtime options"):
        options.decode(type_url, b"\xff\xff", "ns")


def test_start_reads_no_toml_that_has_nothing_for_it() -> None:
    # Not even a wrong one: its error is the create request's to report.
    assert options.start_options(CRI, cri(body=b"nonsense")) == options.StartOptions()


# -- the subset of TOML ---------------------------------------------------------------------


def test_usual_files_need_no_tomllib() -> None:
    assert toml_subset.parse(GVISOR_FILE) == tomllib.loads(GVISOR_FILE)


_LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                'a = "b"', "a = 'b'", "c=1", "c = 01", "d = true # x", "[t]", "[ u ] # y", "[t.u]",
                "[[t]]", 'e = "\\n"', 'f = """x', "g = [1]", "h = 1_0", "-i = 2", "j = ''''", "k",
                '"l" = 1', "m.n = 1", "o = +1", "p = 0x1", 'q = "#"', "r = '#' # '", "\t", "s = {}",
                "t = 1", "a = ''''a'''", "v = 1979-05-27", "w = inf", "x = \"a'b\"", "y = 'a\"b'",
            ]
        ),
        st.text(alphabet="ab=\"'#[]. \\\t\r\x00\x7f1é", max_size=8),
    ),
    max_size=6,
)  # fmt: skip


@given(_LINES, st.sampled_from(["\n", "\r\n"]))
def test_what_the_subset_returns_is_tomllibs(lines: list[str], end: str) -> None:
    text = end.join(lines)
    document = toml_subset.parse(text)
    if document is not None:
        assert document == tomllib.loads(text)
