"""A bridge of the tests' own for pods, and the CNI configuration that joins pods to it.

The host's settings stay as they are: nothing is forwarded or translated, pods reach the host and
each other.  The bridge and its addresses are made here, as the plugin would turn on forwarding.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from integration.harness.base import peers

#: Where libcni remembers results; it can't be told otherwise.
_CACHE = Path("/var/lib/cni/results")

# A CNI plugin that has a shell script change the pod's network namespace, and passes on what the
# plugins before it have said.
_SCRIPTED = """#!/usr/bin/python3
import json, os, subprocess, sys
conf = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    enter = ["nsenter", "--net=" + os.environ["CNI_NETNS"], "sh", "-ec"]
    subprocess.run([*enter, open(conf["script"]).read()], check=True, stdout=sys.stderr)
    json.dump(conf["prevResult"], sys.stdout)
"""


class PodNetwork:
    """One bridge with an IPv4 and an IPv6 subnet, apart from those of other sessions."""

    def __init__(self, folder: Path, number: int) -> None:
        key = (os.getpid() * 8 + number) % 0x10000
        self.bridge = self.name = f"gvt{key:x}"
        self.prefix4 = f"10.{64 + key // 256 % 64}.{key % 256}"
        self.prefix6 = f"fd67:7669:{key:x}:"
        self.host4, self.host6 = f"{self.prefix4}.1", f"{self.prefix6}:1"
        self._folder = folder
        #: Configuration folders: IPv4 alone, and both families.
        self.single, self.dual = folder / "net4", folder / "net46"
        #: A chain of plugins, whose last one runs the script that a test writes here.
        self.chain, self.script = folder / "chain", folder / "script"
        #: The folder of the CNI plugins, and one of our own.
        self.plugins = folder / "bin"
        self._cache_existed = _CACHE.parent.exists()

    def create(self) -> None:
        for folder, families in ((self.single, "4"), (self.dual, "46")):
            folder.mkdir(parents=True, exist_ok=True)
            conf = {"cniVersion": "0.4.0", "name": self.name, "plugins": [self._bridge(families)]}
            folder.joinpath("10-bridge.conflist").write_text(json.dumps(conf))
        self._write_chain()
        with _netlink() as ip:
            ip.link("add", ifname=self.bridge, kind="bridge")
            index = ip.link_lookup(ifname=self.bridge)[0]
            # Without duplicate address detection the address is there at once.
            for name in ("accept_dad", "dad_transmits"):
                Path(f"/proc/sys/net/ipv6/conf/{self.bridge}/{name}").write_text("0")
            ip.addr("add", index=index, address=self.host4, prefixlen=24)
            ip.addr("add", index=index, address=self.host6, prefixlen=64)
            ip.link("set", index=index, state="up")

    def _write_chain(self) -> None:
        for folder in (self.plugins, self.chain):
            folder.mkdir()
        for plugin in plugins().iterdir():
            (self.plugins / plugin.name).symlink_to(plugin)
        last = self.plugins / "scripted"
        last.write_text(_SCRIPTED)
        last.chmod(0o755)
        own = {"type": "scripted", "script": str(self.script)}
        chain = [self._bridge("46"), own]
        conf = {"cniVersion": "0.4.0", "name": self.name, "plugins": chain}
        self.chain.joinpath("10-chain.conflist").write_text(json.dumps(conf))

    def ports(self) -> list[str]:
        """The interfaces that hang on the bridge: one for each pod that is connected."""
        folder = Path(f"/sys/class/net/{self.bridge}/brif")
        return sorted(os.listdir(folder)) if folder.exists() else []

    def leases(self) -> list[str]:
        """The addresses that are given away."""
        folder = self._folder / "leases" / self.name
        return sorted(p.name for p in folder.glob("*") if p.name[:1].isdigit() or ":" in p.name)

    def remembered(self) -> list[Path]:
        """What libcni keeps of pods of this network."""
        return sorted(_CACHE.glob(f"{self.name}-*"))

    def disconnect(self) -> None:
        """Take pods off the bridge whose own end is gone, with their addresses."""
        with _netlink() as ip:
            for port in self.ports():
                for index in ip.link_lookup(ifname=port):
                    ip.link("del", index=index)
        for path in self.remembered():
            path.unlink(missing_ok=True)
        shutil.rmtree(self._folder / "leases", ignore_errors=True)

    def remove(self) -> None:
        self.disconnect()
        with _netlink() as ip:
            for index in ip.link_lookup(ifname=self.bridge):
                ip.link("del", index=index)
        if not self._cache_existed:
            for folder in (_CACHE, _CACHE.parent):
                try:
                    folder.rmdir()
                except OSError:
                    break  # another session uses it
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bridge(self, families: str) -> dict[str, Any]:
        ranges = [[{"subnet": f"{self.prefix4}.0/24", "rangeStart": f"{self.prefix4}.10"}]]
        routes = [{"dst": "0.0.0.0/0", "gw": self.host4}]
        if "6" in families:
            ranges.append([{"subnet": f"{self.prefix6}:/64", "rangeStart": f"{self.prefix6}:10"}])
            routes.append({"dst": "::/0", "gw": self.host6})
        return {
            "type": "bridge",
            "bridge": self.bridge,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._folder / "leases"),
                "ranges": ranges,
                "routes": routes,
            },
        }


def plugins() -> Path:
    """The folder of the CNI plugins."""
    return peers.PEERS / "cni" / "bin"


def _netlink() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyroute2 import IPRoute

        return IPRoute()
