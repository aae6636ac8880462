"""The body of `POST /v1/chat/completions`, checked: what is asked, about what, and how the answer is to be written.

A field that would change the answer and is not obeyed is refused; those that change nothing are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timeviper.datamodules.chat import Cut
from timeviper.serving.fields import Fields, checked_text
from timeviper.serving.problems import ApiError, shown
from timeviper.serving.references import Medium, Parts, Wanted, counted, options_of, wanted_of
from timeviper.serving.settings import ServeSettings
from timeviper.serving.writing import Style
from timeviper.tokenizer import Message

MESSAGES = 512
TEXT = 1 << 20  # characters of all messages
# Said by clients for their own sake.
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity",
)  # fmt: skip
# Not there; anything but the value that changes nothing is refused.
NEUTRAL = {
    "tools": [], "functions": [], "tool_choice": "none", "function_call": "none", "audio": None, "prediction": None,
    "web_search_options": None, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "top_k": -1,
    "min_p": 0, "logit_bias": {}, "best_of": 1, "echo": False, "use_beam_search": False, "ignore_eos": False,
    "min_tokens": 0, "response_format": {"type": "text"}, "modalities": ["text"],
}  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """A checked request."""

    model: str
    messages: Sequence[Message]
    """Contents are `Cut` where media stand."""
    media: Sequence[Medium]
    style: Style
    stream: bool = False
    usage_at_end: bool = False
    usage_always: bool = False
    salt: str = ""
    """Requests with another one share no state."""
    priority: int = 0
    """Above 0: lets others go first. Nobody gets before those who say nothing."""

    @classmethod
    def read(cls, value: object, limits: ServeSettings, usual_tokens: int) -> ChatRequest:
        """usual_tokens: of an answer, where the request says nothing. Raises ApiError."""
        body = Fields(value)
        for key, neutral in NEUTRAL.items():
            if body.raw(key) not in (None, neutral):
                raise ApiError(400, f"{key} is not supported here; leave it out", key)
        model = body.text("model", "", 4096)
        wanted = Wanted()
        options = options_of(body)
        for found in options:
            wanted = wanted_of(found, limits, wanted)
        messages, media = _messages(body, limits, wanted, options[1])
        for found in options:
            for key in ("frames_indices", "total_num_frames", "duration", "do_sample_frames"):
                found.raw(key)
            found.end()
        stream = body.flag("stream")
        usage = body.inner("stream_options")
        at_end, always = usage.flag("include_usage"), usage.flag("continuous_usage_stats")
        usage.raw("include_obfuscation")
        usage.end()
        made = cls(
            model, messages, media, _style(body, limits, usual_tokens), stream, at_end, always,
            body.text("cache_salt", "", 256), body.integer("priority", 0, 1 << 31, 0),
        )  # fmt: skip
        body.end(IGNORED)
        return made


def _style(body: Fields, limits: ServeSettings, usual: int) -> Style:
    most = limits.max_new_tokens
    longest = "max_completion_tokens" if body.has("max_completion_tokens") else "max_tokens"
    for name in ("max_tokens", "max_completion_tokens"):
        body.raw(name)  # read
    stops = body.raw("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > limits.max_stops:
        raise body.refuse("stop", f"must be text, or a list of at most {limits.max_stops} texts")
    if any(not isinstance(stop, str) or not 0 < len(stop) <= 256 for stop in stops):
        raise body.refuse("stop", "must be texts of 1 to 256 characters")
    logprobs = body.flag("logprobs")
    top = body.integer("top_logprobs", 0, 20, 0)
    if top and not logprobs:
        raise body.refuse("top_logprobs", "needs logprobs: true")
    top_p = body.number("top_p", 0, 1, 1.0)
    if top_p == 0:
        raise body.refuse("top_p", "must be above 0 and at most 1")
    return Style(
        max_new_tokens=body.integer(longest, 1, most, min(usual, most)),
        temperature=body.number("temperature", 0, 2, 0.0),
        top_p=top_p,
        seed=body.integer("seed", -(1 << 63), (1 << 64) - 1, 0) % (1 << 63),
        stop=tuple(checked_text(stop, "stop") for stop in stops),
        choices=body.integer("n", 1, limits.max_choices, 1),
        logprobs=top if logprobs else None,
    )


def _messages(
    body: Fields, limits: ServeSettings, wanted: Wanted, frames: Fields
) -> tuple[list[Message], list[Medium]]:
    found = body.raw("messages")
    if not isinstance(found, list) or not 1 <= len(found) <= MESSAGES:
        raise body.refuse("messages", f"must be a list of 1 to {MESSAGES} messages")
    messages: list[Message] = []
    media: list[Medium] = []
    for i, value in enumerate(found):
        message = Fields(value, f"messages[{i}]")
        role = message.text("role", longest=64)
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant"):
            raise message.refuse("role", "must be system, developer, user or assistant")
        message.raw("name")
        for key in ("refusal", "audio", "annotations", "tool_calls", "function_call"):
            if message.raw(key):
                raise message.refuse(key, "is not supported; leave it out")
        parts = Parts(limits, wanted, frames)
        content = message.raw("content")
        if isinstance(content, str):
            parts.add(content, message.name("content"))
        elif isinstance(content, list):
            for k, part in enumerate(message.items("content", 2 * limits.max_pictures + 64)):
                parts.add(part, f"{message.name('content')}[{k}]")
        else:
            raise message.refuse("content", "must be text or a list of parts")
        message.end()
        done = parts.done()
        own = [part for part in done if isinstance(part, Medium)]
        if own and role != "user":
            raise ApiError(400, f"{message.name('content')}: media stand in a user's message", message.name("content"))
        media += own
        messages.append({"role": role, "content": Cut.of([None if isinstance(p, Medium) else p for p in done])})
    counted(media, limits)
    if messages[-1]["role"] != "user":
        raise ApiError(400, "messages must end with one of role user", "messages")
    if (size := sum(len(message["content"]) for message in messages)) > TEXT:
        raise ApiError(400, f"messages hold {size:,} characters; at most {TEXT:,} are taken", "messages")
    if not any(message["content"].strip() for message in messages if message["role"] == "user"):
        raise ApiError(400, "messages hold no text of a user's: write what is asked", "messages")
    return messages, media


def check_model(asked: str, served: Sequence[str]) -> None:
    """404 for another model than those names."""
    if asked and asked not in served:
        raise ApiError(404, f"there is no model {shown(asked)}; this server has {served[0]}", "model")
