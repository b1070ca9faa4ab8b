"""The folders of pods that a kubelet makes, where the shim looks for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PODS = Path("/var/lib/kubelet/pods")


@contextmanager
def pod_folder(uid: str) -> Iterator[Path]:
    """A pod's folder for emptyDirs; with the pod's go those above that nobody else has anything in.

    Tests of several processes have folders here at once.
    """
    folder = PODS / uid / "volumes" / "kubernetes.io~empty-dir"
    while not folder.exists():
        try:
            folder.mkdir(parents=True)
        except FileNotFoundError:
            continue  # another one's clean-up took a parent away between two steps
    yield folder
    shutil.rmtree(PODS / uid)
    for parent in (PODS, PODS.parent):
        try:
            parent.rmdir()
        except OSError:
            return  # it isn't empty, or another one was faster
