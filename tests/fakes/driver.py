"""The driver of an old release, for processes without rights."""

from __future__ import annotations

from runtime.driver import Credentials, DirectDriver
from runtime.settings import Settings
from runtime.spec import Spec


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
