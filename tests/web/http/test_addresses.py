"""The name of a client, and which hop of X-Forwarded-For is the client."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.web.http.addresses import TrustedProxies, client_name, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:5555 ", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::01", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
    ],
)
def test_forms_of_addresses(text: str, address: str) -> None:
    assert parse_address(text) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown",
        "_hidden",
        "localhost",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "a:b",
        "[",
        "[]",
        "1" * 65,
        "::g",
        "192.0.2.1 " + " " * 60 + "x",
        "١.2.3.4",
        "1.2.3.4;x",
        "10.0.0.0/8",
    ],
)
def test_text_that_is_no_address(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("testclient", "testclient"),
        ("", ""),
        ("x" * 10_000, "x" * 64),
    ],
)
def test_client_name(host: str, name: str) -> None:
    assert client_name(host) == name


@given(st.text(max_size=200))
def test_client_name_is_bounded(host: str) -> None:
    assert len(client_name(host)) <= 64


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded_for", "client"),
    [
        # Only the header of a trusted peer counts.
        ((), "192.0.2.9", b"198.51.100.1", "192.0.2.9"),
        (("10.0.0.0/8",), "192.0.2.9", b"198.51.100.1", "192.0.2.9"),
        (("10.0.0.0/8",), "10.1.1.1", b"198.51.100.1", "198.51.100.1"),
        (("10.0.0.0/8",), "::ffff:10.1.1.1", b"198.51.100.1", "198.51.100.1"),
        (("2001:db8::/32",), "2001:db8::5", b"2001:db9::1", "2001:db9::1"),
        # The client's own claims are to the left of the entry that the proxy appended.
        (("10.0.0.0/8",), "10.1.1.1", b"203.0.113.7, 198.51.100.1", "198.51.100.1"),
        (("10.0.0.0/8",), "10.1.1.1", b"x, 198.51.100.1:80", "198.51.100.1"),
        # Trusted hops are skipped.
        (("10.0.0.0/8", "104.16.0.0/13"), "10.1.1.1", b"9.9.9.9, 198.51.100.1, 104.22.17.40", "198.51.100.1"),
        (("10.0.0.0/8",), "10.1.1.1", b"10.2.2.2, 10.3.3.3", "10.2.2.2"),
        # Text that is no address ends the search.
        (("10.0.0.0/8",), "10.1.1.1", b"junk", "10.1.1.1"),
        (("10.0.0.0/8",), "10.1.1.1", b"", "10.1.1.1"),
        (("10.0.0.0/8",), "10.1.1.1", b"198.51.100.1, ,10.3.3.3", "10.3.3.3"),
        (("10.0.0.0/8",), "10.1.1.1", b"\xff" * 9_000, "10.1.1.1"),
        # With `*`, only the last entry counts. The peer wrote it.
        (("*",), "192.0.2.9", b"1.1.1.1, 2.2.2.2", "2.2.2.2"),
        (("*",), "192.0.2.9", b"1.1.1.1, junk", "192.0.2.9"),
        (("*", "10.0.0.0/8"), "192.0.2.9", b"1.1.1.1, 10.0.0.1", "10.0.0.1"),
    ],
)
def test_client_is_first_untrusted_hop_from_the_right(
    trusted: tuple[str, ...], peer: str, forwarded_for: bytes, client: str
) -> None:
    assert TrustedProxies(trusted).client(peer, forwarded_for) == client


def test_hops_are_limited() -> None:
    chain = b", ".join([b"198.51.100.1"] + [b"10.0.0.%d" % n for n in range(100)])
    assert TrustedProxies(["10.0.0.0/8"]).client("10.9.9.9", chain) == "10.0.0.84"


@given(st.binary(max_size=300), st.sampled_from([("*",), ("10.0.0.0/8",), ("0.0.0.0/0", "::/0")]))
def test_client_is_always_an_address(forwarded_for: bytes, trusted: tuple[str, ...]) -> None:
    ipaddress.ip_address(TrustedProxies(trusted).client("10.1.1.1", forwarded_for))
