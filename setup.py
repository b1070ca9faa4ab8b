"""Build the native extension and install the shim's launcher."""

from setuptools import setup

setup(
    cffi_modules=["runtime/_native_build.py:ffi"],
    scripts=["shim/bin/containerd-shim-gvisor-v2"],
)
