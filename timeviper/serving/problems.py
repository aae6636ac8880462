"""What goes wrong with a request, in the shape in which OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
CODES = {
    400: "invalid_value", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    413: "too_large", 415: "unsupported_media_type", 422: "media_unusable", 429: "queue_full", 500: "internal_error",
    503: "not_ready", 507: "storage_full",
}  # fmt: skip


class ApiError(Exception):
    """A request that is refused: its status, and for people what was wrong, where, and what is allowed."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": CODES.get(self.status, kind)}
        }

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            found["WWW-Authenticate"] = 'Basic realm="timeviper", charset="UTF-8"'
        return found


def shown(value: object, most: int = 60) -> str:
    """A value of a request for a message: one short line of plain characters."""
    text = repr(value)
    text = "".join(c if c.isprintable() and c.isascii() else "?" for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."
