"""The project's version, in a module that imports nothing."""

VERSION = "0.1.0"
#: The version of the OCI runtime specification that states and features comply with.
OCI_VERSION = "1.1.0"
