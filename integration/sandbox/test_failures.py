"""What goes wrong at the start, and in whose words it is told."""

from __future__ import annotations

import os

import pytest

from integration.sandbox.lab import PROC, Lab
from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    Unsupported,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")


def test_missing_bind_source_is_told_by_the_gofer(lab: Lab) -> None:
    missing = str(lab.folder / "nowhere")
    mount = {"destination": "/mnt", "type": "bind", "source": missing, "options": ["rbind"]}
    with pytest.raises(Failed, match=r"nowhere.*no such file") as caught:
        lab.boot(["true"], mounts=[PROC, mount])
    if not lab.new:
        assert str(caught.value).startswith("start sandbox: gofer: ")
        # It only found no mounts.
        assert "sentry: " not in str(caught.value)


def test_a_broken_environment_is_told_by_the_sentry(lab: Lab) -> None:
    """And not by its helper that finds it gone, nor by the gofer."""
    with pytest.raises(Failed, match=r"^start sandbox: sentry: .*NOEQ$"):
        lab.boot(["true"], process={"env": ["PATH=/bin", "NOEQ"]})


@pytest.mark.parametrize("program", ["nosuch", "/no/such"])
def test_missing_program(lab: Lab, program: str) -> None:
    run = lab.boot([program])
    with pytest.raises(InvalidRequest, match=rf'exec: "{program}": .*no such file'):
        run.start()


def test_program_that_is_not_executable(lab: Lab) -> None:
    (lab.rootfs / "etc" / "data").write_text("data")
    run = lab.boot(["/etc/data"])
    with pytest.raises(InvalidRequest, match=r'exec: "/etc/data": .*permission denied'):
        run.start()


def test_working_directory(lab: Lab) -> None:
    text, info = lab.outcome(["pwd"], process={"cwd": "/made/up"})
    assert (text, info.status) == ("/made/up\n", 0)
    with pytest.raises((Failed, InvalidRequest), match=r"(?i)/bin/busybox.*not a directory"):
        # The gofer's word, or that of a later release's sentry.
        lab.boot(["true"], process={"cwd": "/bin/busybox"}).start()


def test_missing_root(lab: Lab) -> None:
    with pytest.raises(Failed, match=r"gofer: .*no such file"):
        lab.boot(["true"], root={"path": str(lab.folder / "nowhere")})


def test_unknown_flag(lab: Lab) -> None:
    with pytest.raises(InvalidRequest, match="runsc_config: unknown runsc flag 'frobnicate'"):
        lab.boot(["true"], config=lab.config(frobnicate="1"))


def test_flag_that_runsc_refuses(lab: Lab) -> None:
    with pytest.raises(Failed, match=r'invalid value "maybe" for flag -host-uds'):
        lab.boot(["true"], config=lab.config(host_uds="maybe"))


def test_platform_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(Unsupported, match=r"platform kvm: open /dev/no-such-kvm: no such"):
        config = lab.config(platform="kvm")
        flags = {**config.flags, "platform_device_path": "/dev/no-such-kvm"}
        lab.boot(["true"], config=config.replace(flags=flags))
    with pytest.raises(Failed, match="zork"):
        lab.boot(["true"], config=lab.config(platform="zork"))


def test_missing_network_namespace(lab: Lab) -> None:
    namespace = {"type": "network", "path": "/run/netns/no-such"}
    with pytest.raises(Failed, match=r"open namespace /run/netns/no-such: no such file"):
        lab.boot(["true"], config=lab.config(network="sandbox"), linux={"namespaces": [namespace]})


def test_the_same_id_twice(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    if run.sandbox.control_address.startswith("\0"):
        # Another root directory's sandbox may have that name: then there is the path.
        run = lab.run(["sleep", "100"])
        assert run.sandbox.control_address == str(lab.state / "runsc-one.sock")
    with pytest.raises((AlreadyExists, Failed)):
        lab.boot(["true"], root={"path": str(lab.rootfs), "readonly": True})
    assert run.execute("true")[1].status == 0


def test_binaries_that_are_no_runsc(lab: Lab) -> None:
    if lab.old:
        pytest.skip("independent of the generation")
    plain = lab.folder / "plain"
    plain.write_text("#!/bin/sh\n")
    strange = lab.folder / "strange"
    strange.write_text("#!/bin/sh\necho 'Usage: runsc <flags>' >&2\nexit 128\n")
    strange.chmod(0o755)
    silent = lab.folder / "silent"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    for name, fault, why in (
        (str(plain), Failed, "plain: not executable"),
        (str(lab.folder / "none"), Failed, "none: no such file"),
        ("no-such-runsc", Failed, "'no-such-runsc' not found"),
        (str(strange), Unsupported, "exit status 128.*Usage: runsc"),
        (str(silent), Unsupported, "unknown generation"),
    ):
        with pytest.raises(fault, match=why):
            lab.boot(["true"], config=lab.config().replace(binary=name))
