"""Media of other servers, where the operator has named these: fetched so that a request cannot reach into the network.

A name is resolved once, every address that it has must be a public one, and the connection goes to that address; so
again at each redirect. One parser says what is checked and what is asked for. Errors name no address.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from timeviper.serving.problems import ApiError

REDIRECTS, PIECE = 3, 1 << 20
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], Sequence[str]]


def addresses(host: str, port: int) -> list[str]:
    """All that a name resolves to."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether it is one of the wide network: not private, local, of a cloud's metadata or of another use."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or (found.sixtofour if found.sixtofour else found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96") or found in ipaddress.ip_network("64:ff9b:1::/48"):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


@dataclass(frozen=True)
class Fetcher:
    """Fetches files of these domains (and what stands below them: `example.org` allows `media.example.org`)."""

    domains: tuple[str, ...]
    most_bytes: int
    seconds: float = 30.0
    """For one file, whole."""
    resolve: Resolve = addresses
    public: Callable[[str], bool] = is_public
    ports: Mapping[str, int] = field(default_factory=lambda: PORTS)

    def fetch(self, url: str, write: Callable[[bytes], object]) -> None:
        """Hand the bytes of a file to `write`. Raises ApiError: 400 where nothing is fetched, 422 where it cannot."""
        if not self.domains:
            message = "this server fetches nothing from elsewhere: upload the file (POST /v1/files) and give its id"
            raise ApiError(400, message, "url")
        until = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            parts = self._checked(url)
            try:
                target = self._get(parts, until, write)
            except (OSError, http.client.HTTPException, ValueError):
                raise ApiError(422, "the file cannot be fetched", "url") from None
            if target is None:
                return
            url = urljoin(url, target)
        raise ApiError(422, f"the file cannot be fetched: more than {REDIRECTS} redirects", "url")

    def _checked(self, url: str) -> SplitResult:
        try:
            if any(c <= " " or c in '\\<>"`{}|^' or c > "~" for c in url):
                raise ValueError(url)
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ApiError(400, "the url is none: letters, digits and %XX alone", "url") from None
        host = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme not in PORTS or parts.username is not None or port not in (None, self.ports[parts.scheme]):
            raise ApiError(400, "the url must be http(s)://HOST/PATH, without user and port", "url")
        if not any(host == domain or host.endswith("." + domain) for domain in self.domains):
            raise ApiError(400, "this server fetches nothing from that host", "url")
        return parts

    def _get(self, parts: SplitResult, until: float, write: Callable[[bytes], object]) -> str | None:
        """The body to `write`; or where else it is."""
        host, port = (parts.hostname or "").rstrip("."), self.ports[parts.scheme]
        found = self.resolve(host, port)
        if not found or not all(self.public(address) for address in found):
            raise ValueError(host)
        link = socket.create_connection((found[0], port), timeout=self._left(until))
        with link:
            if parts.scheme == "https":
                link = ssl.create_default_context().wrap_socket(link, server_hostname=host)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = link
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "timeviper", "Accept-Encoding": "identity"})
            reply = connection.getresponse()
            if reply.status in (301, 302, 303, 307, 308):
                return reply.headers["Location"] or ""
            if reply.status != 200:
                raise ValueError(reply.status)
            size = 0
            while data := reply.read1(PIECE):
                size += len(data)
                if size > self.most_bytes:
                    raise ApiError(413, f"a fetched file may have {self.most_bytes:,} bytes at most", "url")
                write(data)
                link.settimeout(self._left(until))
            if reply.length:
                raise ValueError("cut off")
            return None

    def _left(self, until: float) -> float:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
