"""Captions, timed captions and the turns of other formats become conversations. All our words are here."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

from timeviper.datamodules.formats.clip import take_bounds
from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.formats.options import INDEX, choice, take_options, with_options
from timeviper.datamodules.shards.schema import PLACEHOLDERS, SchemaError, check_segments
from timeviper.datamodules.when import WHEN, span

SYSTEM = ("system", "systemprompt", "systemmessage", "systeminstruction", "sysprompt")
LEARNED = ("loss", "train", "trained", "weight", "lossweight", "lossscale", "supervise", "mask")
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
    "action": ("What is done in the video?", "Which action does the video show?", "What is going on in the video?"),
    "times": ("List all the times when this happens: {}.", "When does this happen, each time: {}?"),
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


def ask_times(query: str, spans: Sequence[tuple[float, float]], **more: Any) -> dict[str, Any]:
    """A question that several spans in seconds answer, in their order, a line each."""
    answer = "\n".join(span(start, end) for start, end in sorted(spans))
    return ask("times", answer, query.strip().rstrip(".? "), **more)


def with_talk(fields: dict[str, Any], media: Sequence[str]) -> dict[str, Any]:
    """The fields with all talk as `conversations`; `media` are the types of the media, in order.

    Taken is the first of: `messages`, `conversations` (ours, or turns with from and value, or role and content),
    `question` with `answer` (and options); else `caption` (one or a list) and `segments`, each of which makes
    conversations. A system prompt beside any of them opens each conversation.
    """
    fields = dict(fields)
    kind = {"type": fields.pop("type")} if isinstance(fields.get("type"), str) else {}
    system = _system(fields)
    talks = _talks(fields, media, kind)
    for talk in talks:
        _check_parts(talk)
        talk["messages"] = _opened(talk.get("messages"), system)
    return fields | {"conversations": talks}


def _talks(fields: dict[str, Any], media: Sequence[str], kind: dict[str, str]) -> list[dict[str, Any]]:
    """The conversations, which are taken out of `fields`."""
    if "messages" in fields and "conversations" in fields:
        raise SchemaError("needs either conversations or messages")
    talk = fields.pop("conversations", fields.get("messages"))
    if isinstance(talk, list) and talk and all(isinstance(t, dict) and ("from" in t or "role" in t) for t in talk):
        ours = fields.pop("messages", None) is not None
        messages = [_turn(t) for t in talk]
        _check_options(fields, messages)
        return [{**kind, "messages": messages if ours else _renamed(messages, media)}]
    if "messages" in fields:
        return [{**kind, "messages": fields.pop("messages")}]
    if talk is not None:
        if not isinstance(talk, list) or not all(isinstance(t, dict) for t in talk):
            raise SchemaError("conversations must be a list of objects with messages, or of turns")
        return [{**kind, **t, "messages": _turns(t.get("messages"))} for t in talk]
    if "question" in fields:
        question, answer = _asked(fields)
        return [{**kind, "messages": _pair(question, answer)}]
    if "caption" not in fields and not fields.get("segments"):
        raise SchemaError("says nothing: give messages, conversations, question and answer, a caption, or segments")
    return [{**kind, **t} for t in (*_captions(fields, media), *_events(fields.get("segments", [])))]


def _asked(fields: dict[str, Any]) -> tuple[str, str]:
    """Question and answer, with the options in the question; all of them are taken out of `fields`."""
    options, counted = take_options(fields)
    names = {plain(name): name for name in fields}
    index = next((names[name] for name in INDEX if name in names), None) if options else None
    question = as_text(fields.pop("question"), "question")
    if "answer" in fields:
        answer, index = fields.pop("answer"), None if not counted else "answer"
    elif index:
        answer = fields.pop(index)
    elif isinstance(several := fields.pop("answers", None), list) and several:
        answer = several
    else:
        raise SchemaError("has a question, but no answer")
    if isinstance(answer, list):
        if len({str(a) for a in answer}) != 1:
            raise SchemaError(f"has several answers ({answer!r}); keep one, or write an entry for each")
        answer = answer[0]
    if not options:
        return question, as_text(answer, "answer")
    question, shown = with_options(question, options)
    return question, choice(answer, shown, index is not None)


def _check_options(fields: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    """Options beside turns must be in the turns: where they would have to go in, nobody says."""
    options, _ = take_options(fields)
    said = "\n".join(m["content"] for m in messages if m["role"] == "user" and isinstance(m["content"], str))
    if options and with_options(said, options)[0] != said:
        raise SchemaError("has options that none of its turns shows; write them into the question")


def _system(fields: dict[str, Any]) -> str:
    found = [fields.pop(name) for name in list(fields) if plain(name) in SYSTEM]
    if len({str(text) for text in found}) > 1:
        raise SchemaError("has several system prompts; keep one of them")
    if not found:
        return ""
    if not isinstance(found[0], str):
        raise SchemaError(f"its system prompt must be text, got {found[0]!r}", "text")
    return found[0].strip()


def _opened(messages: Any, system: str) -> Any:
    """The turns after the system prompt of their entry, if there is one."""
    if not system or not isinstance(messages, list):
        return messages
    own = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "system"]
    if not own:
        return [{"role": "system", "content": system}, *messages]
    if [str(text).strip() for text in own] != [system]:
        raise SchemaError("has one system prompt beside its turns and another one in them; keep one of them")
    return messages


def _check_parts(talk: dict[str, Any]) -> None:
    """What is said of one part of a video needs an entry of its own."""
    if talk.get("type") != WHEN and (bounds := take_bounds(dict(talk))[1]):
        raise SchemaError(f"has {bounds} in a conversation; write an entry of its own for each part of the video")


def as_text(value: Any, name: str) -> str:
    """Text, or a number as text. SchemaError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SchemaError(f"{name} must be text, got {value!r}", "text")
    if not str(value).strip():
        raise SchemaError(f"its {name} is empty", "text")
    return str(value)


def _captions(fields: dict[str, Any], media: Sequence[str]) -> list[dict[str, Any]]:
    if "caption" not in fields:
        return []
    found = fields.pop("caption")
    captions = found if isinstance(found, list) else [found]
    if not captions or not all(isinstance(c, str | int | float) and str(c).strip() for c in captions):
        raise SchemaError(f"caption must be text that is not empty, got {found!r}", "text")
    about = media[0] if media else "scene"
    if len(media) > 1:
        about += "s"
    return [ask("caption", as_text(c, "caption").strip(), about) for c in captions]


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


def _turns(messages: Any) -> Any:
    return [_turn(t) if isinstance(t, dict) else t for t in messages] if isinstance(messages, list) else messages


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Role and content, with whatever else is said of the turn. SchemaError for one that is not to be learned."""
    turn = dict(turn)
    speaker = turn.pop("from") if "from" in turn else turn.pop("role", None)
    role = SPEAKERS.get(str(speaker))
    if role is None:
        raise SchemaError(f"a turn is from {speaker!r}; known: {', '.join(SPEAKERS)}")
    content = turn.pop("value") if "value" in turn else turn.pop("content", None)
    for name in [name for name in turn if plain(name) in LEARNED]:
        if turn[name] not in (True, 1):
            raise SchemaError(
                f"a turn has {name} {turn[name]!r}, but all answers are learned alike; leave such turns out"
            )
        del turn[name]
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
    return {"role": role, "content": content, **turn}


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
