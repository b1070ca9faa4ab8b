"""The driver of an old release, for processes without rights."""

from __future__ import annotations

from runtime.bundle.spec import Spec
from runtime.runsc.driver import Credentials, DirectDriver
from runtime.runsc.flags import Settings


class Unprivileged(DirectDriver):
    """Without the namespaces and credentials that take root, and no name that others have."""

    abstract_sockets = False

    def sandbox_namespaces(self, settings: Settings, spec: Spec) -> int:
        return 0

    def gofer_namespaces(self) -> int:
        return 0

    def sandbox_credentials(self, settings: Settings, spec: Spec) -> Credentials:
        return Credentials()

    def gofer_credentials(self, settings: Settings, spec: Spec) -> Credentials:
        return Credentials()
