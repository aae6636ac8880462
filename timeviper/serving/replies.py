"""What the server answers: one object, or a stream of events, as OpenAI's clients read them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from timeviper.serving.facts import Facts
from timeviper.serving.request import ChatRequest
from timeviper.serving.writing import Shown

DONE = b"data: [DONE]\n\n"


def event(value: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients pass over, and that keeps proxies from ending a stream."""
    return f": {text}\n\n".encode()


@dataclass
class Completion:
    """One answer, or several, as they come to be."""

    request: ChatRequest
    facts: Facts
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0
    """Written so far, over all answers."""
    seconds_to_first: float = 0.0

    def __post_init__(self) -> None:
        choices = self.request.style.choices
        self.texts = [""] * choices
        self.ends: list[str | None] = [None] * choices
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(choices)]

    @property
    def done(self) -> bool:
        return all(self.ends)

    def add(self, number: int, shown: Shown) -> None:
        self.texts[number] += shown.text
        self._logprobs[number] += shown.logprobs
        self.ends[number] = shown.end or None

    def usage(self) -> dict[str, Any]:
        prompt = self.facts.prompt_tokens
        details = {"cached_tokens": self.facts.cached_tokens, "multimodal_tokens": self.facts.vision_tokens}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": details,
        }

    def more(self) -> dict[str, Any]:
        """What OpenAI's replies have no place for."""
        return {
            "timeviper": self.facts.as_dict(),
            "metrics": {"time_to_first_token_ms": round(1e3 * self.seconds_to_first, 1)},
        }

    def as_dict(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._said(logs),
                "finish_reason": end,
            }
            for i, (text, end, logs) in enumerate(zip(self.texts, self.ends, self._logprobs))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(), **self.more()}

    def opening(self) -> bytes:
        """The first event of each answer: who speaks."""
        return b"".join(
            self._chunk(i, {"role": "assistant", "content": ""}, None) for i in range(self.request.style.choices)
        )

    def chunk(self, number: int, shown: Shown) -> bytes:
        """The event of a piece of an answer."""
        delta = {"content": shown.text} if shown.text or not shown.end else {}
        return self._chunk(number, delta, shown.end or None, shown.logprobs)

    def closing(self) -> bytes:
        """What follows the last piece."""
        if not self.request.usage_at_end:
            return DONE
        return (
            event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(), **self.more()}) + DONE
        )

    def _chunk(self, i: int, delta: dict[str, Any], end: str | None, logs: list[dict[str, Any]] | None = None) -> bytes:
        choice = {"index": i, "delta": delta, "logprobs": self._said(logs or []), "finish_reason": end}
        value = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.request.usage_always:
            value["usage"] = self.usage()
        elif self.request.usage_at_end:
            value["usage"] = None
        if end and self.done:
            value |= self.more()
        return event(value)

    def _said(self, logs: list[dict[str, Any]]) -> dict[str, Any] | None:
        return None if self.request.style.logprobs is None else {"content": logs, "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
