"""Client addresses: the name under which limits count a client, and the client behind trusted proxies."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses are shorter, even "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%zone]:65535".
ADDRESS_LENGTH = 64
# At most this many hops of X-Forwarded-For are read. No chain of proxies is longer, and each hop costs time.
HOPS = 16
# One client usually has a whole IPv6 network of this size, 2**64 addresses.
IPV6_PREFIX = 64


def parse_address(text: str) -> Address | None:
    """The address in a text, with or without brackets, port and zone; None if there is none."""
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
    # A dual-stack socket reports IPv4 clients as mapped IPv6 addresses, which all lie in one /64.
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4_096)
def client_name(host: str) -> str:
    """The name of a client in tables and logs: its IPv4 address or IPv6 network.

    Its length is bounded for any `host`, because some servers report other text than an address.
    """
    address = parse_address(host)
    if address is None:
        return host[:ADDRESS_LENGTH]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, IPV6_PREFIX), strict=False))
    return str(address)


class TrustedProxies:
    """The proxies whose X-Forwarded-For header is trusted (KASPARRO_TRUSTED_PROXIES)."""

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

        Each proxy appends the address of its own peer, so the list is read from its end. The first address
        that is not a trusted proxy is the client; entries before it are the client's own claims. With `*`
        every peer is a proxy, so the last entry counts. The search ends at text that is not an address, with
        the hop that reported it.
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
