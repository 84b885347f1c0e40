"""Names clients by their addresses, as limits count them, and finds the client behind trusted proxies."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%zone]:65535" is shorter; longer text is no address.
ADDRESS_LENGTH = 64
# Hops of X-Forwarded-For that are followed. No chain of proxies is longer, and each costs time.
HOPS = 16
# The host of one client has 2**64 addresses of an IPv6 network of this size.
IPV6_PREFIX = 64


def parse_address(text: str) -> Address | None:
    """The address in a text, with or without brackets, port and zone; None if it holds none."""
    text = text.strip()
    if len(text) > ADDRESS_LENGTH:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket for both families reports IPv4 clients as mapped addresses, all of them in one /64.
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4_096)
def client_name(host: str) -> str:
    """The name of a client in tables and logs: its IPv4 address or IPv6 network.

    It is bounded in length, whatever `host` is: some servers report a client by another name than an address.
    """
    address = parse_address(host)
    if address is None:
        return host[:ADDRESS_LENGTH]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, IPV6_PREFIX), strict=False))
    return str(address)


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed (KASPARRO_TRUSTED_PROXIES)."""

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self._all = "*" in names
        self._networks = [ipaddress.ip_network(name) for name in names if name != "*"]

    def __bool__(self) -> bool:
        return self._all or bool(self._networks)

    def __contains__(self, host: str) -> bool:
        if self._all:
            return True
        address = parse_address(host)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def client(self, peer: str, forwarded_for: bytes) -> str:
        """The address of the client for which `peer`, the other end of the connection, forwards a request.

        Each proxy appends the address it was asked from, so the list is read from its end: the first address
        that is no proxy's is the client, and what stands before it is only what that client claims. With `*`
        every peer is a proxy, so the last address counts. Text that is no address ends the search at the hop
        that reported it.
        """
        client = peer
        if peer in self:
            for hop in reversed(forwarded_for.rsplit(b",", HOPS)[-HOPS:]):
                address = parse_address(hop.decode("latin-1"))
                if address is None:
                    break
                client = str(address)
                if self._all or not self._trusts(address):
                    break
        return client
