"""A conversation about videos becomes tokens, labels and token kinds. Training, evaluation and chat use this.

The chat template is rendered once a list of roles with marks in place of the contents, and cut there.
Its pieces are encoded with special tokens recognised, the contents without: a user's text can never
open or close a turn. The prompt of a generation is the same rendering, cut where the answer would begin.

Media stand where `<video>` or `<image>` do in the users' messages, in order (either word for either kind);
without any of them, all media open the first user message. Frames are runs of placeholder tokens (id 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timeviper.config import ChatConfig
from timeviper.datamodules.shards.schema import PLACEHOLDER, ROLES
from timeviper.pack import IGNORE, Kind
from timeviper.tokenizer import MARK, Message, Tokenizer

SHORT = 80  # characters of a text that may be expected to come again


@dataclass
class Media:
    """What the prompt must know of a video or image; its pixels go another way."""

    times: NDArray[np.float64] | Tensor | Sequence[float]
    """`[F]` seconds of each frame."""
    duration: float
    kind: Literal["video", "image"] = "video"


class Cut(str):
    """A content whose media stand where they were put, not where `<video>` is written: whoever types that into a
    question gets no medium."""

    parts: list[str]
    """The texts before, between and behind the media."""

    @classmethod
    def of(cls, parts: Sequence[str | None]) -> Cut:
        """From texts and media (None) in order. Beside media and other texts a text stands on lines of its own."""
        texts = [""]
        for i, part in enumerate(parts):
            if part is None:
                texts[-1] += "\n" if texts[-1] else ""
                texts.append("")
            else:
                texts[-1] += ("\n" if i else "") + part
        made = cls("".join(texts))
        made.parts = texts
        return made


@dataclass
class Encoded:
    """One conversation as tokens; see `Pack` for the meaning of each value."""

    ids: Tensor
    """`[L]` int64"""
    labels: Tensor
    """`[L]` int64, shifted: what follows each token, where that is to be predicted."""
    kind: Tensor
    """`[L]` uint8, values of `Kind`"""


class _Writer:
    """Collects the tokens of a conversation from left to right."""

    def __init__(self, tokenizer: Tokenizer, tokens_per_frame: int, chat: ChatConfig) -> None:
        self.tokenizer, self.tokens_per_frame, self.chat = tokenizer, tokens_per_frame, chat
        self.ids: list[int] = []
        self.kinds = bytearray()
        self.supervised = bytearray()
        self.prompt_kind = Kind.CONTEXT  # until the first vision token

    def write(self, ids: Sequence[int], kind: Kind | None = None, supervised: bool = False) -> None:
        self.ids.extend(ids)
        self.kinds += bytes((self.prompt_kind if kind is None else kind,)) * len(ids)
        self.supervised += bytes((supervised,)) * len(ids)

    def media(self, media: Media) -> bool:
        """The frames, with what `chat.time` says about their times; whether a line of text follows them.

        Images have no time.
        """
        timed = media.kind == "video"
        times = np.asarray(media.times, np.float64).tolist()
        self.frames(times, timed)
        if timed and self.chat.time in ("sentence", "tokens"):
            self.write(self.tokenizer.encode(time_sentence(media.duration, len(times))))
            return True
        return False

    def frames(self, times: Sequence[float], timed: bool, first: int = 0) -> None:
        """Frames from number `first` on, with the times that stand between them."""
        frame, vision = [0] * self.tokens_per_frame, bytes((Kind.VISION,)) * self.tokens_per_frame
        every = self.chat.frames_per_time if timed and self.chat.time == "frames" else 0
        for i, seconds in enumerate(times, first):
            if every and i % every == 0:
                text = _short_ids(self.tokenizer, time_text(seconds))
                self.ids += text
                self.kinds += bytes((self.prompt_kind,)) * len(text)
            self.ids += frame
            self.kinds += vision
            self.prompt_kind = Kind.INSTRUCTION
        self.supervised += bytes(len(self.ids) - len(self.supervised))

    def encoded(self) -> Encoded:
        # numpy, because a torch operation costs more than such short arrays do
        ids, follows = np.array(self.ids, np.int64), np.frombuffer(self.supervised, np.bool_)[1:]
        labels = np.full_like(ids, IGNORE)
        labels[:-1][follows] = ids[1:][follows]
        kinds = np.array(self.kinds)
        return Encoded(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(kinds))


def time_text(seconds: float) -> str:
    """Stands before a group of frames with `chat.time: frames`."""
    return f"{seconds:.1f}s"


def _ids(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    return _short_ids(tokenizer, text) if len(text) <= SHORT else tokenizer.encode(text)


@lru_cache(maxsize=1 << 16)
def _short_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Times, questions and answers in a word repeat from sample to sample, and encoding takes longer than all else
    about them."""
    return tuple(tokenizer.encode(text)) if text else ()


def time_sentence(duration: float, frames: int) -> str:
    """Stands after the frames of a video with `chat.time: sentence`, so that it is instruction text."""
    return f"The video lasts {duration:.1f} seconds, shown in {frames} frames.\n"


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    media: Sequence[Media],
    tokens_per_frame: int,
    chat: ChatConfig,
    *,
    supervise: Literal["all", "last"] = "all",
    generate: bool = False,
    max_tokens: int | None = None,
) -> Encoded:
    """Tokens of a conversation that ends with an answer, or, to `generate`, of the prompt for the next one.

    Supervised are the contents of the assistant's messages (all, or the last) with the token that ends
    the turn. Raises ValueError for roles out of order, media that do not match their placeholders, and
    a conversation of more than `max_tokens` tokens: text is never cut.
    """
    if chat.system and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.system}, *messages]
    roles = tuple(message["role"] for message in messages)
    _check_roles(roles, generate)
    turns = _template(tokenizer, (*roles, "assistant") if generate else roles)
    writer = _Writer(tokenizer, tokens_per_frame, chat)
    waiting = iter(media)
    for i, (turn, text) in enumerate(zip(turns, _texts(messages, len(media)))):
        writer.write(turn.before)
        if roles[i] == "assistant":
            answer = [*_ids(tokenizer, text[0]), *turn.end]
            supervised = not generate and (supervise == "all" or i == len(roles) - 1)
            writer.write(answer, Kind.ANSWER, supervised)
        else:
            writer.write(_ids(tokenizer, text[0]))
            for part in text[1:]:
                said = writer.media(next(waiting))
                writer.write(_ids(tokenizer, part.removeprefix("\n") if said else part))
    if generate:
        writer.write(turns[-1].before)
    if max_tokens is not None and len(writer.ids) > max_tokens:
        vision = writer.kinds.count(Kind.VISION)
        raise ValueError(
            f"the conversation takes {len(writer.ids)} tokens, {vision} of them for {vision // tokens_per_frame} "
            f"frames, and the context holds {max_tokens}: shorten the text or read fewer frames"
        )
    return writer.encoded()


def encode_frames(
    tokenizer: Tokenizer, times: Sequence[float], first: int, tokens_per_frame: int, chat: ChatConfig
) -> Encoded:
    """The tokens that further frames of a video add to a prompt, from frame number `first` on, which is not 0."""
    writer = _Writer(tokenizer, tokens_per_frame, chat)
    writer.prompt_kind = Kind.INSTRUCTION
    writer.frames(times, timed=True, first=first)
    return writer.encoded()


def estimate_text(
    tokenizer: Tokenizer, text_bytes: int, frames: Sequence[int], chat: ChatConfig, turns: int = 1
) -> int:
    """About how many text tokens `encode_chat` will make, from the UTF-8 bytes of all messages; no text is read.

    frames: of each video. turns: pairs of a question and an answer.
    """
    tokens = _template_tokens(tokenizer, chat.system, turns) + text_bytes / tokenizer.bytes_per_token
    tokens += sum(_time_tokens(tokenizer, chat.time, chat.frames_per_time, n) for n in frames)
    return round(tokens)


def time_text_tokens(tokenizer: Tokenizer, frames: Sequence[int], chat: ChatConfig) -> int:
    """About how many tokens of text stand between the frames of such videos: no transfer takes them out."""
    if chat.time != "frames":
        return 0
    return sum(_time_tokens(tokenizer, chat.time, chat.frames_per_time, n) for n in frames)


def estimate_texts(
    tokenizer: Tokenizer,
    text_bytes: NDArray[np.int64],
    frames: NDArray[np.int64],
    chat: ChatConfig,
    turns: NDArray[np.int64],
) -> NDArray[np.int64]:
    """`estimate_text` of many conversations about one video (of so many frames) or none (-1), to the token."""
    pairs, where = np.unique(turns, return_inverse=True)
    tokens = np.array([_template_tokens(tokenizer, chat.system, n) for n in pairs.tolist()])[where]
    tokens = tokens + text_bytes / tokenizer.bytes_per_token
    counts, where = np.unique(frames, return_inverse=True)
    times = [_time_tokens(tokenizer, chat.time, chat.frames_per_time, n) if n >= 0 else 0 for n in counts.tolist()]
    return np.rint(tokens + np.array(times)[where]).astype(np.int64)


@lru_cache(maxsize=256)
def _template_tokens(tokenizer: Tokenizer, system: str, pairs: int) -> int:
    """Tokens of so many questions and answers without any text, and of the system message."""
    roles = (*(["system"] if system else []), *["user", "assistant"] * pairs)
    turns = _template(tokenizer, roles)
    return sum(len(turn.before) + len(turn.end) for turn in turns) + len(tokenizer.encode(system))


@lru_cache(maxsize=1 << 16)
def _time_tokens(tokenizer: Tokenizer, time: str, frames_per_time: int, num_frames: int) -> int:
    """Tokens that tell the time of a video, as if it had a frame a second."""
    if time in ("sentence", "tokens"):
        return len(tokenizer.encode(time_sentence(num_frames, num_frames)))
    if time == "frames":
        return -(-num_frames // frames_per_time) * len(tokenizer.encode(time_text(num_frames / 2)))
    return 0


@dataclass(frozen=True)
class _Turn:
    """What the template puts around one message."""

    before: tuple[int, ...]
    """Header of the message, after whatever the template adds behind the end of the one before."""
    end: tuple[int, ...]
    """After an assistant's content, up to the special token that ends the turn; else empty."""


@lru_cache(maxsize=512)
def _template(tokenizer: Tokenizer, roles: tuple[str, ...]) -> list[_Turn]:
    """The chat template as tokens, for messages with these roles. Cached: the roles are all it depends on."""
    marks = [f"{MARK}{i}{MARK}" for i in range(len(roles))]
    rest = tokenizer.render([{"role": role, "content": mark} for role, mark in zip(roles, marks)])
    pieces = []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found or MARK in piece:
            raise ValueError(f"the chat template drops, repeats or reorders messages with roles {', '.join(roles)}")
        pieces.append(tokenizer.encode_template(piece))
    pieces.append(tokenizer.encode_template(rest))
    turns = []
    for i, role in enumerate(roles):
        end: list[int] = []
        if role == "assistant":
            after = pieces[i + 1]
            stop = next((k for k, token in enumerate(after) if token in tokenizer.special_ids), None)
            if stop is None:
                raise ValueError("the chat template ends no answer with a special token, so none could be learned")
            end, pieces[i + 1] = after[: stop + 1], after[stop + 1 :]
        turns.append(_Turn(tuple(pieces[i]), tuple(end)))
    return turns


def _check_roles(roles: tuple[str, ...], generate: bool) -> None:
    last = "user" if generate else "assistant"
    if unknown := [role for role in roles if role not in ROLES]:
        raise ValueError(f"a message has the role {unknown[0]!r}; allowed are {', '.join(ROLES)}")
    if "user" not in roles or roles[-1] != last:
        raise ValueError(
            f"the messages must hold a user's and end with one of role {last!r}, "
            f"got {', '.join(roles) or 'no messages'}"
        )


def _parts(content: str) -> list[str]:
    return content.parts if isinstance(content, Cut) else PLACEHOLDER.split(content)


def _texts(messages: Sequence[Message], num_media: int) -> list[list[str]]:
    """Contents of the messages, a user's cut at the placeholders of media.

    Without placeholders, the media come first in the first user message, on a line of their own.
    """
    texts = [_parts(message["content"]) if message["role"] == "user" else [message["content"]] for message in messages]
    found = sum(len(text) - 1 for text in texts)
    if found == 0 and num_media:
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        texts[first] = [*[""] * num_media, "\n" + texts[first][0]]
    elif found != num_media:
        raise ValueError(
            f"the messages hold {found} <video> or <image> placeholders for {num_media} media; "
            "write one for each, or none to have all media first"
        )
    return texts
