"""Hosts and ports: every one that is taken can be dialled and stand in a certificate."""

import pytest

from multiseg.errors import UsageError
from multiseg.federation import addresses


@pytest.mark.parametrize(
    ("text", "dialled"),
    [
        ("fed.example.org", "fed.example.org"),
        ("Fed.Example.ORG", "fed.example.org"),
        ("localhost", "localhost"),
        ("centre-1", "centre-1"),
        ("xn--klinik-kln-djb.de", "xn--klinik-kln-djb.de"),
        ("3com.example", "3com.example"),
        ("10.0.0.5", "10.0.0.5"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8:0:0::1]", "2001:db8::1"),
        ("a" * 63 + ".org", "a" * 63 + ".org"),
    ],
)
def test_a_host_is_taken_as_it_is_dialled(text: str, dialled: str) -> None:
    assert addresses.host(text) == dialled
    assert addresses.server(addresses.joined(dialled, 8443)) == (dialled, 8443)


REFUSED = {
    "": "is empty",
    " ": "has spaces",
    "fed.example.org ": "has spaces",
    "fed example.org": "has spaces",
    "fed.example.org\n": "has spaces",
    "fed.example.org:8443": "holds a port",
    "10.0.0.5:8443": "holds a port",
    "[2001:db8::1]:8443": "holds a port",
    "2001:db8::1::2": "is not a valid IPv6 address",
    "[fed.example.org]": "brackets are for IPv6",
    "[10.0.0.5]": "brackets are for IPv6",
    "https://fed.example.org": "is a URL",
    "fed.example.org/gate": "is a URL or a path",
    "root@fed.example.org": "is a URL",
    "*.example.org": "is a wildcard",
    "fed_1.example.org": "has an underscore",
    "fed.example.org.": "ends in a dot",
    "fed..example.org": "is not a host name",
    ".example.org": "is not a host name",
    "-fed.example.org": "is not a host name",
    "fed-.example.org": "is not a host name",
    "klinik-köln.de": "begins with xn--",
    "fed。example": "begins with xn--",
    "a" * 64 + ".org": "is too long",
    ".".join(["abcdefgh"] * 29): "is too long",
    "256.1.1.1": "looks like an IPv4 address",
    "10.0.0": "looks like an IPv4 address",
    "8443": "looks like an IPv4 address",
    "0.0.0.0": "not an address that another machine can dial",
    "::": "not an address that another machine can dial",
    "224.0.0.1": "not an address that another machine can dial",
    "fe80::1%eth0": "not an address that another machine can dial",
    "fed$(id).org": "is not a host name",
    'fed".org': "is not a host name",
    "fed\0.org": "is not a host name",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_dialled_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[text]) as refused:
        addresses.host(text)
    assert 'as "fed.example.org" or "10.0.0.5"' in str(refused.value)


@pytest.mark.parametrize("text", ["0", "65536", "99999", "-1", "", "84a3", "٨٤٤٣", "8443 ", "008443"])
def test_a_port_is_a_number_from_1_to_65535(text: str) -> None:
    with pytest.raises(UsageError, match="from 1 to 65535"):
        addresses.port(text)


@pytest.mark.parametrize(
    "text",
    ["", "fed.example.org", ":8443", "fed.example.org:", "fed.example.org:0", "fed.example.org:70000", "::1:8443",
     "https://fed.example.org:8443", "fed.example.org:8443/", "a:b:8443", "[::1]", "[]:8443", "0.0.0.0:8443"],
)  # fmt: skip
def test_a_server_is_host_and_port(text: str) -> None:
    with pytest.raises(UsageError, match=r'Give "host:port" without a scheme'):
        addresses.server(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fed.example.org:8443", ("fed.example.org", 8443)),
        ("10.0.0.5:1", ("10.0.0.5", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_a_server_is_read(text: str, found: tuple[str, int]) -> None:
    assert addresses.server(text) == found
    assert addresses.joined(*found) == text
