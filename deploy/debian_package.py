"""Build the Debian package, of the same content as the bundle.

    python -m deploy.debian_package [OPTIONS OF deploy.bundle]

Gives ``OUT/gvisor-shim_VERSION_ARCH.deb`` from the folder that ``deploy.bundle`` leaves.  The
bundle lies in /usr/lib/gvisor-shim as it is, so ``gvctl install`` works from there, too.  There is
no debhelper: nothing is built here, and no script is run when it is installed.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import textwrap
from pathlib import Path

from deploy import bundle

_HOME = "usr/lib/gvisor-shim"
_CONTROL = """\
Package: gvisor-shim
Version: {version}
Architecture: {arch}
Maintainer: containerd-shim-gvisor <root@localhost>
Installed-Size: {size}
Recommends: containerd (>= 1.6)
Suggests: runsc
Section: admin
Priority: optional
Description: containerd shim that runs pods under gVisor
 One small process for each pod speaks containerd's runtime v2 API and drives a
 gVisor sandbox itself, without the runsc command line. The package holds the shim,
 gvctl, and the Python that runs them; runsc comes from elsewhere.
 .
 gvctl install registers it with what runs the machine's pods.
"""
_LINKS = {
    "usr/bin/gvctl": f"../lib/{Path(_HOME).name}/bin/gvctl",
    "usr/bin/containerd-shim-gvisor-v2": f"../lib/{Path(_HOME).name}/bin/containerd-shim-gvisor-v2",
}


def _compress(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(source.read_bytes())


def copyright_text(tree: Path) -> str:
    """In Debian's machine-readable form: each component with its licence."""
    contents = json.loads((tree / "share/contents.json").read_text())
    text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
    text += "Comment: The texts are in /usr/lib/gvisor-shim/share/licenses and share/doc/LICENSE.\n"
    for each in contents["components"]:
        text += f"\nFiles: {each['name']}\nCopyright: the authors of {each['name']}\n"
        text += (
            f"License: {each['licence']}\nComment: {each['source']}, version {each['version']}\n"
        )
    return text


def build(tree: Path, out: Path, level: int) -> Path:
    """The package's path; ``tree`` is an unpacked bundle."""
    contents = json.loads((tree / "share/contents.json").read_text())
    stage = out / f".{tree.name}.deb"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        shutil.copytree(tree, stage / _HOME)
        for name, target in _LINKS.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to(target)
        docs = stage / "usr/share/doc/gvisor-shim"
        _compress(tree / "share/man/man1/gvctl.1", stage / "usr/share/man/man1/gvctl.1.gz")
        _compress(tree / "share/doc/CHANGELOG.md", docs / "changelog.gz")
        (docs / "copyright").write_text(copyright_text(tree))
        size = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        (stage / "DEBIAN").mkdir()
        (stage / "DEBIAN/control").write_text(
            _CONTROL.format(
                version=contents["version"],
                arch=contents["arch"],
                size=-(-size // 1024),
            )
        )
        for path in (stage, *stage.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.utime(path, (bundle.EPOCH, bundle.EPOCH), follow_symlinks=False)
        package = out / f"gvisor-shim_{contents['version']}_{contents['arch']}.deb"
        words = ("--root-owner-group", "-Zzstd", f"-z{level}", "--build", stage, package)
        bundle.run("dpkg-deb", *words, SOURCE_DATE_EPOCH=str(bundle.EPOCH))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return package


def main() -> None:
    """Build the bundle, then the package of it."""
    args = bundle.arguments(textwrap.dedent(__doc__ or "").partition("\n")[0])
    out = args.out.resolve()
    archive = bundle.build(bundle.target_of(args), out, args.level)
    print(archive)
    print(build(bundle.tree_of(archive), out, args.level))


if __name__ == "__main__":
    main()
