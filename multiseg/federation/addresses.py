"""Parses hosts and ports as people write them, and refuses what cannot be dialled or put into a certificate."""

from __future__ import annotations

import re
from ipaddress import ip_address

from multiseg.errors import UsageError

LONGEST_NAME, LONGEST_LABEL = 253, 63
EXAMPLE = 'Give a name or an address alone, as "fed.example.org" or "10.0.0.5"'
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")


def host(text: str) -> str:
    """A host as it is dialled and put into a certificate: a name in lower case, or an IP address without brackets.

    Raises:
        UsageError: it is empty, holds a port, a scheme or a path, or cannot be dialled.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            raise UsageError(f"host [{text}]: brackets are for IPv6 addresses. {EXAMPLE}.")
    try:
        address = ip_address(text)
    except ValueError:
        return _name(text)
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise UsageError(f"host {text!r} is not an address that another machine can dial. {EXAMPLE}.")
    return str(address)


def port(text: str) -> int:
    """A port; UsageError unless it is a number from 1 to 65535."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise UsageError(f"port {text!r}: give a number from 1 to 65535.")
    return int(text)


def server(text: str) -> tuple[str, int]:
    """Host and port of "host:port"; UsageError if it is something else."""
    wanted = 'Give "host:port" without a scheme, as "fed.example.org:8443" or "[2001:db8::1]:8443".'
    before, colon, after = text.rpartition(":")
    if not colon or "://" in text or (":" in before and not before.startswith("[")):
        raise UsageError(f"server is {text!r}. {wanted}")
    try:
        return host(before), port(after)
    except UsageError as error:
        raise UsageError(f"server is {text!r}: {error} {wanted}") from error


def joined(host: str, port: int) -> str:
    """ "host:port", which `server` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name(text: str) -> str:
    labels = text.split(".")
    is_too_long = len(text) > LONGEST_NAME or max(map(len, labels)) > LONGEST_LABEL
    for is_wrong, reason in (
        (not text or text != text.strip() or any(map(str.isspace, text)), "is empty or has spaces"),
        ("://" in text or "/" in text or "@" in text, "is a URL or a path"),
        (":" in text, f"holds a port, or is not a valid IPv6 address. {EXAMPLE}, and the port by --port"),
        (not text.isascii(), "has letters that are not ASCII: use its DNS name, which begins with xn--"),
        (text.endswith("."), "ends in a dot, which certificates do not allow"),
        ("*" in text, "is a wildcard, but hospitals dial one name"),
        ("_" in text, "has an underscore, which host names do not allow"),
        (is_too_long, f"is too long: at most {LONGEST_NAME} letters, and {LONGEST_LABEL} between dots"),
        (not all(map(_LABEL.fullmatch, labels)), "is not a host name: use letters, digits and '-' between dots"),
        (labels[-1].isdigit(), "looks like an IPv4 address but is not valid"),
    ):
        if is_wrong:
            raise UsageError(f"host {text!r} {reason}." + ("" if EXAMPLE in reason else f" {EXAMPLE}."))
    return text.lower()
