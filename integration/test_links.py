"""Folders of the host that are reached by symbolic links: a machine's /run or /var may be moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.clients.gvctl import Gvctl, Shop
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.host.image import unpack_rootfs
from integration.harness.nodes.node import Node

pytestmark = pytest.mark.gvisor


def test_everything_of_containerd_lies_behind_a_link(short_folder: Path) -> None:
    """Its root and state, and so bundle and root file system; FIFOs, runsc, options, volumes."""
    place, link = short_folder / "moved", short_folder / "link"
    place.mkdir()
    link.symlink_to(place)
    version, generation = peers.PRIMARY
    daemon = Containerd(version, generation, link, f"{short_folder.name}-links")
    node = Node(daemon, peers.GVISOR, "link")
    daemon.start()
    try:
        daemon.import_image()
        (place / "volume").mkdir()
        (place / "rootfs").mkdir()
        unpack_rootfs(place / "rootfs")
        options = link / "options.toml"
        options.write_text(f'root = "{link}/runsc"\nbinary_name = "{link}/bin/runsc"\n')
        mount = f"type=bind,src={link}/volume,dst=/mnt,options=rbind:rw"
        given = ("--runtime-config-path", str(options), "--mount", mount)
        name = node.run_detached("sleep", "1000", options=given)
        assert node.exec(name, "sh", "-c", "echo done > /mnt/file; cat /mnt/file").out == "done\n"
        assert (place / "volume" / "file").read_text() == "done\n"
        assert list((place / "runsc").rglob(f"{name}_sandbox:{name}.state"))
        node.delete(name)
        fifos = ("--fifo-dir", str(daemon.fifos))
        base = ("run", "--rm", "--runtime", node.runtime, *fifos, *given, "--rootfs")
        done = node.ctr(*base, str(link / "rootfs"), node.new_id(), "/bin/cat", "/mnt/file")
        assert (done.code, done.out) == (0, "done\n"), done
        node.clean()
        node.assert_clean()
    finally:
        node.clean()
        node.close()
        daemon.remove()
        footprint.remove_cgroups(daemon)
        link.unlink()


def test_gvctl_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "moved")
    shop = Shop(peers.PRIMARY[1], link)
    shop.options = ("--root", str(shop.root), "--runsc", str(_linked_runsc(link)))
    shop.gvctl = Gvctl(*shop.options)
    mount = {"destination": "/mnt", "type": "bind", "source": str(link), "options": ["rbind"]}
    try:
        for name, root in (("absolute", str(shop.rootfs)), ("relative", "../rootfs")):
            bundle = shop.bundle(name, "ls", "/mnt", root={"path": root}, mounts=[mount])
            done = shop.gvctl("run", "--bundle", bundle, name)
            assert done.code == 0, done
            assert "rootfs" in done.out.split(), done
    finally:
        shop.close()
        for each in Path("/sys/fs/cgroup").glob(f"*/{shop.cgroup}"):
            each.rmdir()


def _linked_runsc(link: Path) -> Path:
    (link / "runsc").symlink_to(peers.runsc(peers.PRIMARY[1]))
    return link / "runsc"
