"""Host policy for files, searches, tokens and redirects: which hosts and network addresses may be contacted."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import UpstreamError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

ANY_PUBLIC_HOST = "*"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_INNER_SUFFIXES = (".local", ".internal", ".localhost", ".localdomain", ".home.arpa")


class Refused(UpstreamError):
    """The policy does not allow an address, or what its name resolves to."""


@dataclass(frozen=True)
class HostPolicy:
    """Allowed hosts: "host", "*.suffix", "127.0.0.1:8080" (also over http), or "*" (any public https host).

    Hosts listed by name or pattern may resolve to any address, because their owners are trusted. Any other host must
    resolve to public addresses only, which is checked again at each connection (`addresses`), so that a
    name cannot change its address between check and use.
    """

    hosts: tuple[str, ...] = ()

    def lists(self, host: str) -> bool:
        """True where a host is allowed by its name or a pattern, not only as any public host."""
        return any(fnmatchcase(host, pattern) for pattern in self.hosts if pattern != ANY_PUBLIC_HOST)

    def fault(self, parts: SplitResult) -> tuple[str, str] | None:
        """(broken rule, what to list to allow the address or ""); None when an http or https address is allowed.

        Plain http is for listed loopback addresses only.
        """
        try:
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError as error:
            return f"its port is not a number ({error})", ""
        if "@" in parts.netloc:
            return "it carries a user name or password", ""
        scheme, place = parts.scheme.lower(), parts.netloc.lower()
        if scheme not in ("http", "https"):
            return f"scheme {scheme}: is not https", ""
        listed = place in self.hosts
        if scheme == "http" and not (listed and is_loopback(host)):
            return "plain http is only for listed loopback addresses", parts.netloc
        if listed:
            return None
        if port not in (None, 443):
            return f"port {port} is not listed", parts.netloc
        if is_address(host):
            return "addresses instead of names must be listed", parts.netloc
        if self.lists(host):
            return None
        if ANY_PUBLIC_HOST not in self.hosts:
            return f"host {host!r} is not listed", host
        if "." not in host or host.endswith(_INNER_SUFFIXES) or _resolves_inside(host):
            return f"host {host!r} is not a public one", host
        return None

    def check(self, url: str, what: str = "address") -> None:
        """Raise Refused when the policy does not allow `url`."""
        try:
            fault: tuple[str, str] | None = self.fault(urlsplit(url))
        except ValueError as error:
            fault = f"it is not an address ({error})", ""
        if fault:
            raise Refused(f"{what} {redact(url[:200])!a} is refused: {fault[0]}", cure=listing_cure(fault[1]))

    def addresses(self, host: str, port: int) -> list[str]:
        """Addresses of a host that may be connected to, in the resolver's order. Refused, or OSError without any."""
        name = host.lower().rstrip(".")
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)]
        if {name, f"{name}:{port}", f"[{name}]:{port}"} & set(self.hosts) or self.lists(name):
            return found
        inside = [address for address in found if not is_public(address)]
        if inside:
            raise Refused(
                f"host {name!r} is refused: it resolves to {inside[0]}, which is not a public address",
                cure=listing_cure(name),
            )
        return found


def listing_cure(listing: str) -> str:
    """Cure for a refusal; "" where the host should not be allowed."""
    return f"if you trust it, list {listing!r} under hosts in a catalogue file of your own" if listing else ""


def is_address(host: str) -> bool:
    """True for IPv4/IPv6 literals, including the decimal, octal and hexadecimal spellings that libcurl understands."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"(0x[0-9a-f]+|\d+)(\.(0x[0-9a-f]+|\d+)){0,3}", host) is not None
    return True


def is_loopback(host: str) -> bool:
    """True for loopback addresses and "localhost"."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: str) -> bool:
    """True for a unicast address of the public internet; an IPv4 address inside an IPv6 one must be public too."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return _is_public(parsed)
    embedded = list(_embedded(parsed))
    translated = parsed in _NAT64 or parsed.ipv4_mapped is not None
    return all(map(_is_public, embedded)) and (translated or _is_public(parsed))


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses embedded in an IPv6 address: mapped, translated (NAT64), 6to4 and Teredo."""
    if address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    for found in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if found is not None:
            yield found


@functools.lru_cache(maxsize=1024)
def _resolves_inside(host: str) -> bool:
    """True when a name resolves into a private network. An early check: `HostPolicy.addresses` decides at each use."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(not is_public(str(entry[4][0])) for entry in found)
