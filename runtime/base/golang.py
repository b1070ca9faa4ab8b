"""Values as Go's standard library reads them: runsc and containerd are written in it."""

from __future__ import annotations


def parse_bool(value: str) -> bool | None:
    """What Go's ``strconv.ParseBool`` makes of a flag's value; None where it fails."""
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    return None
