"""Which of the routes that a network namespace has the sandbox is told of.  Pure.

The kernel picks among routes to the same destination by their metrics, and has routes that refuse.
netstack knows neither: of several to one destination it takes the first whose interface has a
usable source address.  So what the kernel would decide is decided here, and told by order.
"""

from __future__ import annotations

import _socket

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SOCKET_FAMILIES = {4: _socket.AF_INET, 6: _socket.AF_INET6}
#: By RFC 4191's preference, in the kernel's numbers; only between routes of one metric.
_PREFERENCES = {1: 0, 0: 1, 3: 2}


class Route(Record):
    """A route of the main table through one link.  ``destination`` is "" for a default route."""

    family: int
    destination: str = ""
    prefix: int = 0
    gateway: str = ""
    metric: int = 0
    mtu: int = 0
    #: RTA_PREF: 0 is medium, 1 high, 3 low.
    preference: int = 0
    #: Its place among all routes, in the kernel's order.
    order: int = 0
    #: Only for what is sent from its link's address: a rule says so, and it comes after the others.
    bound: bool = False


class Link(Record):
    """An interface that is up, and what is configured on it."""

    name: str
    index: int
    mtu: int
    #: Hexadecimal; empty if its frames have no link layer header.
    address: str = ""
    loopback: bool = False
    #: The device can segment; and up to which size.
    gso: bool = False
    gso_max_size: int = 0
    #: (family, address, prefix length)
    addresses: tuple[tuple[int, str, int], ...] = ()
    routes: tuple[Route, ...] = ()
    #: (address, link layer address in hexadecimal)
    neighbors: tuple[tuple[str, str], ...] = ()


class Routing(Record):
    """What each link gets, by its index, in the order in which netstack has to try them."""

    #: Without the default routes in ``defaults``.
    of_link: Mapping[int, tuple[Route, ...]]
    #: Of each family; tried last.
    defaults: Mapping[int, tuple[Link, Route]]
    #: Destinations that nothing may be sent to: for the loopback, where it ends.
    refused: tuple[Route, ...] = ()


def decide(links: Sequence[Link], refused: Iterable[Route] = (), *, sorts: bool) -> Routing:
    """The routing of a sandbox that has ``links``, in this order.

    ``refused`` are routes that make packets fail (blackhole, unreachable, prohibit).  ``sorts``
    says whether netstack looks for the longest prefix (since release-20240715); an older one takes
    the first route that matches at all, so a default route must stand behind all others.

    Of several routes to one destination that of the lowest metric counts.  The others stay behind
    it, for sockets that are bound to another link or its address, as far as netstack can be told
    so: their links come later, and it ``sorts`` or they aren't default routes.
    """
    place = {link.index: at for at, link in enumerate(links)}
    rivals: dict[tuple[int, int, bytes], list[tuple[Link | None, Route]]] = {}
    for link in links:
        for route in link.routes:
            rivals.setdefault(_key(route), []).append((link, route))
    for route in refused:
        rivals.setdefault(_key(route), []).append((None, route))
    of_link: dict[int, list[Route]] = {link.index: [] for link in links}
    defaults: dict[int, tuple[Link, Route]] = {}
    walls: list[Route] = []
    for (family, prefix, _), ways in rivals.items():
        ways.sort(key=lambda way: _rank(way[1]))
        first, best = ways[0]
        if best.bound:
            continue  # netstack would use it for everything
        if first is None:
            # Without any default route everything else fails, and at once.
            if prefix:
                walls.append(best)
            continue
        kept = [
            (other, route)
            for other, route in ways[1:]
            if other is not None and place[other.index] > place[first.index]
        ]
        if not prefix and not (sorts and kept):
            defaults[family] = (first, best)
            continue
        for other, route in [(first, best), *kept]:
            of_link[other.index].append(route)
    for routes in of_link.values():
        routes.sort(key=lambda route: (route.family, -route.prefix, *_rank(route)))
    told = [route for routes in of_link.values() for route in routes]
    told += [route for _, route in defaults.values()]
    # One that stands for itself needs no telling: there is no other way, which fails at once.
    walls = [wall for wall in walls if any(_covers(route, wall) for route in told)]
    walls.sort(key=lambda route: (route.family, -route.prefix))
    return Routing(
        of_link={index: tuple(routes) for index, routes in of_link.items()},
        defaults=defaults,
        refused=tuple(walls),
    )


def _key(route: Route) -> tuple[int, int, bytes]:
    if not route.prefix:
        return route.family, 0, b""
    address = _socket.inet_pton(_SOCKET_FAMILIES[route.family], route.destination)
    return route.family, route.prefix, address


def _covers(wide: Route, narrow: Route) -> bool:
    if wide.family != narrow.family or wide.prefix > narrow.prefix:
        return False
    if not wide.prefix:
        return True
    a, b = (int.from_bytes(_key(route)[2], "big") for route in (wide, narrow))
    shift = (32 if wide.family == 4 else 128) - wide.prefix
    return a >> shift == b >> shift


def _rank(route: Route) -> tuple[bool, int, int, int]:
    return route.bound, route.metric, _PREFERENCES.get(route.preference, 1), route.order
