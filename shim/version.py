"""The project's version, in a module that imports next to nothing."""

from runtime.base.version import VERSION as VERSION
