"""Who may ask: keys, and pages of other sites, which a browser would let ask in a visitor's name."""

from __future__ import annotations

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from timeviper.serving.problems import ApiError
from timeviper.serving.settings import LOCAL, ServeSettings
from timeviper.serving.store import tenant_of

POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
ALWAYS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """Lets through who has a key, on every path, and writes the tenant into the scope's state."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in ALWAYS.items() if name not in present]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_site(scope, headers)
            scope.setdefault("state", {})["tenant"] = tenant_of(self._key(headers))
        except ApiError as error:
            reply = JSONResponse(error.body(), error.status, error.headers())
            return await reply(scope, receive, with_headers)
        await self.app(scope, receive, with_headers)

    def _key(self, headers: Headers) -> str:
        """The key that was shown; "" where none is asked for. 401 for none, or another one."""
        if not self.settings.keys:
            return ""
        kind, _, shown = headers.get("authorization", "").partition(" ")
        shown = shown.strip()
        if kind.lower() == "basic":  # what a browser asks its user for: any name, the key as password
            try:
                shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                shown = ""
        found = [key for key in self.settings.keys if hmac.compare_digest(key.encode(), shown.encode())]
        if kind.lower() not in ("bearer", "basic") or not found:
            raise ApiError(401, "the key is missing or wrong: Authorization: Bearer KEY")
        return found[0]

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        """403 for a page of another site; for a name of this machine that is none, where no key is asked for (a site
        may let its own name point here)."""
        host = headers.get("host", "")
        name = _name(host)
        if not self.settings.keys and name not in (*LOCAL, self.settings.host):
            raise ApiError(403, "this server answers to localhost alone")
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] != "GET":
            raise ApiError(403, "a page of another site may not ask here")
        if origin is not None and (origin == "null" or urlsplit(origin).netloc.lower() != host.lower()):
            raise ApiError(403, "a page of another site may not ask here")


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
