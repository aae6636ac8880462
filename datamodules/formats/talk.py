"""Captions, timed captions and the turns of other formats become conversations. All our words are here."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

from timeviper.datamodules.shards.schema import PLACEHOLDERS, SchemaError, check_segments
from timeviper.datamodules.when import WHEN, span

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MARK = re.compile("|".join(PLACEHOLDERS.values()))

# Several ways to ask. Which one is taken depends on the answer alone, so the same data make the same shards.
QUESTIONS = {
    "caption": ("Describe the {}.", "What does the {} show?", "Write a caption for the {}."),
    "segment": ("What happens {}?", "What does the video show {}?", "Describe what happens {}."),
    "dense": ("What happens when?", "Tell what happens and when.", "List what happens with the times."),
    WHEN: (
        "When does this happen: {}?",
        "From when to when does this happen: {}?",
        "At what time of the video does this happen: {}?",
    ),
}


def ask(kind: str, answer: str, about: str = "", **more: Any) -> dict[str, Any]:
    """One conversation of type `kind`: a question about `about` with its answer. `more` is kept beside it."""
    wordings = QUESTIONS[kind]
    question = wordings[zlib.crc32(answer.encode(errors="replace")) % len(wordings)].format(about)
    return {**more, "type": kind, "messages": _pair(question, answer)}


def ask_when(query: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    """A question that `start` and `end` in seconds answer, in the form that the metrics read."""
    query = query.strip()
    answer = span(start, end)
    if query.endswith("?"):
        return {**more, "type": WHEN, "messages": _pair(query, answer)}
    return ask(WHEN, answer, query.rstrip(". "), **more)


def with_talk(fields: dict[str, Any], media: Sequence[str]) -> dict[str, Any]:
    """The fields with all talk as `messages` or `conversations`; `media` are the types of the media, in order.

    Taken is the first of: `messages`, `conversations` (ours, or turns with from and value, or role and content),
    `question` with `answer`; else `caption` (one or a list) and `segments`, each of which makes conversations.
    """
    fields = dict(fields)
    kind = {"type": fields.pop("type")} if isinstance(fields.get("type"), str) else {}
    talk = fields.get("conversations")
    if isinstance(talk, list) and talk and all(isinstance(t, dict) and ("from" in t or "role" in t) for t in talk):
        del fields["conversations"]
        return fields | {"conversations": [{**kind, "messages": _renamed([_turn(t) for t in talk], media)}]}
    if "messages" in fields and "conversations" not in fields:
        return fields | {"conversations": [{**kind, "messages": fields.pop("messages")}]}
    if "messages" in fields or "conversations" in fields:
        return fields | kind
    if "question" in fields and "answer" in fields:
        messages = _pair(fields.pop("question"), fields.pop("answer"))
        return fields | {"conversations": [{**kind, "messages": messages}]}
    if "caption" not in fields and not fields.get("segments"):
        raise SchemaError("says nothing: give messages, conversations, question and answer, a caption, or segments")
    made = [*_captions(fields, media), *_events(fields.get("segments", []))]
    return fields | kind | {"conversations": made}


def _captions(fields: dict[str, Any], media: Sequence[str]) -> list[dict[str, Any]]:
    if "caption" not in fields:
        return []
    found = fields.pop("caption")
    captions = found if isinstance(found, list) else [found]
    if not all(isinstance(c, str) and c.strip() for c in captions):
        raise SchemaError(f"caption must be text that is not empty, got {found!r}", "text")
    about = media[0] if media else "scene"
    if len(media) > 1:
        about += "s"
    return [ask("caption", c.strip(), about) for c in captions]


def _events(segments: Any) -> list[dict[str, Any]]:
    """Of timed captions: one conversation that lists them all, and one about each."""
    check_segments(segments)
    if not segments:
        return []
    events = [(span(s["start"], s["end"]), s["text"].strip()) for s in segments]
    listed = ask("dense", "\n".join(f"{when}: {text}" for when, text in events))
    return [listed, *(ask("segment", text, when) for when, text in events)]


def _pair(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    speaker = turn.get("from", turn.get("role"))
    role = SPEAKERS.get(str(speaker))
    if role is None:
        raise SchemaError(f"a turn is from {speaker!r}; known: {', '.join(SPEAKERS)}")
    return {"role": role, "content": turn.get("value", turn.get("content"))}


def _renamed(messages: list[dict[str, Any]], media: Sequence[str]) -> list[dict[str, Any]]:
    """In these formats `<image>` stands for a video as well: the k-th mark gets the name of the k-th medium."""
    if len(marks(messages)) != len(media):
        return messages  # refused later, with what is wrong
    types = iter(media)
    return [
        m | {"content": MARK.sub(lambda _: PLACEHOLDERS[next(types)], m["content"])}
        if m["role"] == "user" and isinstance(m["content"], str)
        else m
        for m in messages
    ]


def marks(messages: Any) -> list[str]:
    """The types that the placeholders in users' turns name, in order; for turns of any of the forms."""
    if not isinstance(messages, list):
        return []
    users = [m for m in messages if isinstance(m, dict) and m.get("from", m.get("role")) in ("human", "user")]
    texts = [m.get("value", m.get("content")) for m in users]
    types = {mark: kind for kind, mark in PLACEHOLDERS.items()}
    return [types[found] for text in texts if isinstance(text, str) for found in MARK.findall(text)]
