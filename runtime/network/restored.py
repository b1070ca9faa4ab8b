"""Addresses that a sandbox took off its links, for the one that is restored in its place.  Pure.

A network namespace that a sandbox has had shows no addresses any more: they went to the sentry,
which kept what it was told, and so does a checkpoint's image.
"""

from __future__ import annotations

import _socket
from binascii import Error, a2b_base64

from runtime.base.errors import InvalidRequest
from runtime.network.routes import Link, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_MAX_LINKS = 1024
_MAX_ROUTES = 1 << 20
_SOCKET_FAMILIES = {4: _socket.AF_INET, 6: _socket.AF_INET6}
_BITS = {4: 32, 6: 128}


def give_back(links: tuple[Link, ...], kept: Mapping[str, Any]) -> tuple[Link, ...]:
    """``links`` as they were before the sandbox that was told ``kept``, where they are the same.

    The same is one of the same name and hardware address.  One that has addresses has new ones,
    which count.  Raises InvalidRequest if ``kept`` is malformed.
    """
    try:
        known = kept.get("FDBasedLinks") or []
        if len(known) > _MAX_LINKS:
            raise ValueError("too many links")
        described = {each["Name"]: each for each in known}
        return tuple(
            _given_back(link, described[link.name], kept)
            if not link.loopback and not link.addresses and link.name in described
            else link
            for link in links
        )
    except (KeyError, TypeError, ValueError, AttributeError, Error) as error:
        raise InvalidRequest("checkpoint", f"its network is malformed: {error!r}") from None


def _given_back(link: Link, described: Mapping[str, Any], kept: Mapping[str, Any]) -> Link:
    if a2b_base64(described["LinkAddress"]).hex() != link.address:
        return link  # another one, of the same name
    # Their order is what their metrics came to.  A default route that stands apart has the least.
    place = [each["Name"] for each in kept["FDBasedLinks"]].index(link.name)
    routes = [
        _route(each, place * _MAX_ROUTES + at + 1)
        for at, each in enumerate(described["Routes"] or ())
    ]
    for family in (4, 6):
        default = kept[f"Defaultv{family}Gateway"]
        if default["Name"] == link.name:
            routes.append(_route(default["Route"], 0).replace(family=family))
    return link.replace(
        addresses=tuple(map(_address, described["Addresses"] or ())),
        routes=tuple(routes),
        neighbors=tuple(
            (_checked(_family(each["IP"]), each["IP"]), a2b_base64(each["HardwareAddr"]).hex())
            for each in described["Neighbors"] or ()
        ),
    )


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _checked(family: int, address: str) -> str:
    """The address, if it is one of that family."""
    try:
        _socket.inet_pton(_SOCKET_FAMILIES[family], address)
    except OSError:
        raise ValueError(f"{address[:50]!r} is no IPv{family} address") from None
    return address


def _address(described: Mapping[str, Any]) -> tuple[int, str, int]:
    address, prefix = described["Address"], int(described["PrefixLen"])
    family = _family(address)
    if not 0 <= prefix <= _BITS[family]:
        raise ValueError(f"prefix {prefix} of {address[:50]}")
    return family, _checked(family, address), prefix


def _route(described: Mapping[str, Any], metric: int) -> Route:
    destination = described["Destination"]
    mask = a2b_base64(destination["Mask"])
    prefix = int.from_bytes(mask, "big").bit_count()
    family = {4: 4, 16: 6}[len(mask)]
    gateway = described["Gateway"]
    return Route(
        family=family,
        destination=_checked(family, destination["IP"]) if prefix else "",
        prefix=prefix,
        metric=metric,
        gateway=_checked(_family(gateway), gateway) if gateway else "",
        mtu=int(described.get("MTU", 0)),
    )
