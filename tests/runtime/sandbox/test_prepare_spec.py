from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.bundle.spec import Spec, parse_spec
from runtime.runsc.config import RunscConfig
from runtime.runsc.flags import Settings, read_settings
from runtime.sandbox.prepare_spec import Prepared, on_host_network, prepare
from tests.fakes.generations import GENERATIONS

#: A flag of every sandbox.
FILTERS = {"oci-seccomp": "true"}
KINDS = ("pid", "ipc", "uts", "mount", "network")


def make_spec(without: str = "", process: Any = None, linux: Any = None, **more: Any) -> Spec:
    value = {
        "process": {"args": ["true"], "noNewPrivileges": True, **(process or {})},
        "root": {"path": "/no/such/root"},
        "linux": {"namespaces": [{"type": k} for k in KINDS if k != without], **(linux or {})},
        **more,
    }
    return parse_spec(json.dumps(value).encode(), "/bundle")


def run(spec: Spec, year: int = 2024, network: str | None = None, **flags: str) -> Prepared:
    config = RunscConfig(root="/run/x", flags={k.replace("_", "-"): v for k, v in flags.items()})
    return prepare(spec, config, GENERATIONS[year], sandbox(network) if network else None)


def sandbox(network: str) -> Settings:
    flags = {"network": network}
    return read_settings(RunscConfig(root="/r", flags=flags), GENERATIONS[2024], None)


def caps(*names: str) -> dict[str, Any]:
    return {"capabilities": {"bounding": list(names)}}


def test_a_spec_that_asks_for_nothing_changes_nothing() -> None:
    spec = make_spec()
    done = run(spec)
    assert (done.spec.raw, done.config.flags, done.notes) == (spec.raw, FILTERS, ())


# -- flags -------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2022, 2024])
def test_raw_sockets(year: int) -> None:
    asks = make_spec(process=caps("CAP_KILL", "CAP_NET_RAW"))
    assert run(asks, year).config.flags == {**FILTERS, "net-raw": "true"}
    assert run(make_spec(process=caps("CAP_KILL")), year).config.flags == FILTERS


def test_the_operators_flag_wins() -> None:
    spec = make_spec(
        "network", process=caps("CAP_NET_RAW"), linux={"seccomp": {"defaultAction": "SCMP_ACT_LOG"}}
    )
    flags = {"net_raw": "false", "oci_seccomp": "false", "network": "none"}
    done = run(spec, **flags)
    assert done.config.flags == {"net-raw": "false", "oci-seccomp": "false", "network": "none"}
    assert done.spec.raw["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_LOG"}


def test_set_user_id_programs() -> None:
    newer = GENERATIONS[2026]
    newer = newer.replace(global_flags={**newer.global_flags, "allow-suid": ""})
    config = RunscConfig(root="/run/x")

    def flags(**options: Any) -> Any:
        return prepare(make_spec(**options), config, newer).config.flags

    assert flags(process={"noNewPrivileges": False}) == {**FILTERS, "allow-suid": "true"}
    assert flags() == FILTERS
    pod = {"io.kubernetes.cri.container-type": "sandbox"}
    assert flags(annotations=pod) == {**FILTERS, "allow-suid": "true"}
    assert run(make_spec(process={"noNewPrivileges": False})).config.flags == FILTERS


def test_seccomp() -> None:
    spec = make_spec(linux={"seccomp": {"defaultAction": "SCMP_ACT_LOG"}})
    done = run(spec)
    assert done.config.flags == FILTERS
    assert done.spec.raw["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
    assert [note.partition(":")[0] for note in done.notes] == ["seccomp", "seccomp"]
    assert "no filter for execs" in done.notes[1]
    assert not any("execs" in note for note in run(spec, 2026).notes)
    old = GENERATIONS[2022]
    old = old.replace(global_flags={k: v for k, v in old.global_flags.items() if "oci" not in k})
    done = prepare(spec, RunscConfig(root="/run/x"), old)
    assert done.config.flags == {} and "seccomp" in done.notes[0]


# -- network -----------------------------------------------------------------------------------


def test_host_network() -> None:
    assert run(make_spec("network")).config.flags == {**FILTERS, "network": "host"}
    crio = make_spec(annotations={"io.kubernetes.cri-o.HostNetwork": "true"})
    assert run(crio).config.flags == {**FILTERS, "network": "host"}
    # The host's, by a path.
    named = {"namespaces": [{"type": "ipc"}, {"type": "network", "path": "/proc/self/ns/net"}]}
    assert run(make_spec(linux=named)).config.flags == {**FILTERS, "network": "host"}


def test_no_host_network() -> None:
    assert not on_host_network(make_spec())
    assert not on_host_network(make_spec(linux={"namespaces": []}))
    named = {"namespaces": [{"type": "network", "path": "/no/such/file"}]}
    assert not on_host_network(make_spec(linux=named))


def test_host_network_that_the_operator_forbids() -> None:
    config = RunscConfig(root="/run/x", flags={"network": "sandbox"})
    with pytest.raises(InvalidRequest, match="asks for the host's network"):
        prepare(make_spec("network"), config, GENERATIONS[2024])


@pytest.mark.parametrize(("without", "network"), [("network", "sandbox"), ("", "host")])
def test_a_container_has_the_network_of_its_sandbox(without: str, network: str) -> None:
    config = RunscConfig(root="/run/x")
    done = prepare(make_spec(without), config, GENERATIONS[2024], sandbox(network))
    assert done.config.flag("network", "sandbox") == network


# -- mounts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["rbind", "rro"], ["rbind", "ro"]),
        (["rbind", "rw", "rro"], ["rbind", "ro"]),
        (["rbind", "ro", "rrw"], ["rbind", "rw"]),
        (["rbind", "rro", "rnoexec", "exec"], ["rbind", "ro", "noexec"]),
        (["rbind", "ro", "exec"], ["rbind", "ro", "exec"]),
    ],
)
def test_recursive_options(given: list[str], expected: list[str]) -> None:
    mount = {"destination": "/a", "type": "bind", "source": "/b", "options": given}
    spec = run(make_spec(mounts=[mount])).spec
    assert sorted(spec.mounts[0].options) == sorted(expected)
    assert sorted(spec.raw["mounts"][0]["options"]) == sorted(expected)


# -- what can't be given -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"without": "ipc"}, "host's IPC namespace"),
        ({"linux": {"sysctl": {"kernel.shm_rmid_forced": "1"}}}, "'kernel.shm_rmid_forced'"),
        ({"process": {"selinuxLabel": "a_u:b_r:c_t:s0"}}, "SELinux"),
    ],
)
def test_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        run(make_spec(**options))


def test_sysctls_of_every_pod_are_tolerated() -> None:
    sysctls = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    assert run(make_spec(linux={"sysctl": sysctls})).notes == ()


def test_sysctls_that_the_sentry_has() -> None:
    spec = make_spec(linux={"sysctl": {"fs.nr_open": "1000"}})
    assert run(spec, 2024).notes == ()
    with pytest.raises(Unsupported, match=r"fs\.nr_open"):
        run(spec, 2022)


def test_domain_name_among_the_sysctls() -> None:
    """Docker's --domainname; releases before 20260520 have no domain name."""
    linux = {"sysctl": {"kernel.domainname": "some.where", "net.ipv4.ping_group_range": "0 1"}}
    done = run(make_spec(linux=linux), 2026)
    assert done.spec.raw["domainname"] == "some.where" and done.notes == ()
    assert done.spec.raw["linux"]["sysctl"] == {"net.ipv4.ping_group_range": "0 1"}
    assert run(make_spec(linux=linux, domainname="own"), 2026).spec.raw["domainname"] == "own"
    assert [note.split()[0] for note in run(make_spec(linux=linux), 2024).notes] == ["domainname"]


def test_notes() -> None:
    assert "PID" in run(make_spec("pid")).notes[0]
    member = {"io.kubernetes.cri.container-type": "container"}
    assert run(make_spec("pid", annotations=member)).notes == ()
    assert "AppArmor" in run(make_spec(process={"apparmorProfile": "x"})).notes[0]


@pytest.mark.parametrize(("year", "kept"), [(2022, ["CAP_KILL"]), (2024, ["CAP_KILL", "CAP_BPF"])])
def test_an_unknown_capability_is_a_warning(year: int, kept: list[str]) -> None:
    done = run(make_spec(process=caps("CAP_KILL", "CAP_X", "CAP_BPF")), year)
    assert done.spec.raw["process"]["capabilities"] == {"bounding": kept}
    assert done.notes[0] == "no capability 'CAP_X': not known"
