"""A video that has been watched: its state, asked as often as one likes without reading the video again.

    state = model.watch("clip.mp4")
    print(state.ask("What appears first?"), state.ask("When?"))
    state.save("clip.state")

Two tiers. `state` holds what the decoder keeps of the video up to where a question comes in
(`timeviper.model.boundary`): a question costs its own tokens, and the blocks behind the first stage that ranks by it.
`features` holds what the vision towers made of the frames, six to eight times less: the first question after loading
costs a prefill, and the decoder, its schedule and the text before the video may be others each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.stored import StoredFrames
from timeviper.datamodules.shards.schema import PLACEHOLDER, PLACEHOLDERS
from timeviper.inference.answer import Answer, Sampling, check_question, written
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question, check_fits
from timeviper.inference.reading import drained, read_video_prompt
from timeviper.inference.state_file import StateFile, write_state
from timeviper.inference.state_key import FIELDS, OF_FEATURES, StateError, StateKey, digest_of, head_of, prefix_of
from timeviper.inference.state_tensors import FACTS, read_boundary, read_facts, read_features
from timeviper.inference.watching import advance, go_on
from timeviper.kernels import dispatch
from timeviper.model.boundary import Boundary, question_cut, schedule
from timeviper.package import VERSION
from timeviper.tokenizer import Message

if TYPE_CHECKING:
    from timeviper.inference.ask import LoadedModel

Tier = Literal["state", "features"]


@dataclass(eq=False)
class VideoState:
    """A watched video and the model that watched it. `LoadedModel.watch` and `load_state` make it."""

    model: LoadedModel = field(repr=False)
    key: StateKey
    medium: StoredFrames = field(repr=False)
    """Times and facts of the frames, without pixels; in the tier of features with what the towers made of them."""
    messages: Sequence[Message] = field(repr=False)
    """A conversation whose beginning, up to the video, is that of all questions."""
    boundary: Boundary | None = field(repr=False)
    """None: features alone, from which the first question makes it."""
    head: str = field(default="", repr=False)
    """SHA-256 of the prompt up to the last vision token, with kinds."""
    video: str = ""
    """The path; empty for frames in memory."""

    # ---- what it is ---------------------------------------------------------------------------------------

    @property
    def tier(self) -> Tier:
        return "features" if self.medium.features else "state"

    @property
    def bytes(self) -> int:
        """Memory that it takes, and about the size of its file."""
        features = sum(f.nbytes for f in self.medium.features.values())
        return features + (0 if self.boundary is None else self.boundary.num_bytes()) + self.medium.times.nbytes

    @property
    def frames(self) -> int:
        return len(self.medium.times)

    @property
    def tokens(self) -> int:
        """Tokens of a prompt that it stands for: those of the frames and of the text before and between them."""
        return self.frames * self.model.model.tokens_per_frame if self.boundary is None else self.boundary.seen

    @property
    def seconds(self) -> float:
        """That the video lasts; 0 for a picture."""
        return self.medium.duration

    @property
    def times(self) -> np.ndarray:
        """`[F]` seconds at which a player shows each frame."""
        return self.medium.times

    # ---- questions ----------------------------------------------------------------------------------------

    def prompt(self, question: str | Sequence[Message], max_new_tokens: int | None = None) -> tuple[Encoded, Prefilled]:
        """A question, or a conversation that ends with one, ready to be answered: the prompt's tokens, and hidden state
        `[1, D]` and `DecoderState` after the last of them, as one prefill of video and text would leave them. The state
        is the caller's; this one stays as it is.

        max_new_tokens: for which room is made; None: `recipe.eval.max_new_tokens`.
        Raises StateError where the text before the video is another, TooLongError where the context does not hold it.
        """
        model = self.model
        cfg = model.recipe.eval
        longest = cfg.max_new_tokens if max_new_tokens is None else max_new_tokens
        messages = self.opening((), question) if isinstance(question, str) else question
        encoded = self._encode(messages)
        check_fits(encoded, self.frames, longest, model.model.decoder.cfg)
        dispatch.configure(**vars(model.recipe.model.kernel))
        boundary = self._read(messages, encoded)
        ids, kind = encoded.ids[boundary.seen :], encoded.kind[boundary.seen :]
        return encoded, go_on(model.model.decoder, boundary, ids, kind, longest, cfg.tokens_per_piece)

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stream: bool = False,
    ) -> Answer:
        """Answer a question about the video. history: messages before it, of user and assistant in turn; their text
        goes through the model again, which is exact. Options and errors as `LoadedModel.ask` has them, and those of
        `prompt`."""
        check_question(question)
        model, how = self.model, Sampling(max_new_tokens, temperature, top_p, generator, stream)
        longest = how.longest(model.recipe.eval.max_new_tokens)
        prompt, start = self.prompt(self.opening(history, question), longest)
        asked = Question([{"role": "user", "content": question}], [self.medium], self.video)
        return written(model.model, model.tokenizer, asked, self.medium, prompt, start, longest, how).answer

    def opening(self, history: Sequence[Message], question: str) -> list[Message]:
        """A question with the messages before it, behind those that stood before the video when it was watched."""
        asked: Message = {"role": "user", "content": question}
        if history:
            return [*self._before(history[0]), *history[1:], asked]
        return self._before(asked)

    def _before(self, first: Message) -> list[Message]:
        """The messages up to the video, and in the video's own the text behind it replaced by that of `first`."""
        at = next(
            (i for i, m in enumerate(self.messages) if m["role"] == "user" and PLACEHOLDER.search(m["content"])), None
        )
        if PLACEHOLDER.search(first["content"]):
            return [*self.messages[: at or 0], first]
        if at is None:
            before = [m for m in self.messages[:1] if m["role"] == "system"]
            return [*before, first]
        own = PLACEHOLDER.split(self.messages[at]["content"])[0]
        text = f"{own}{PLACEHOLDERS['video']}\n{first['content']}"
        return [*self.messages[:at], {"role": "user", "content": text}]

    def _encode(self, messages: Sequence[Message]) -> Encoded:
        return Question(messages, [self.medium]).encode(self.model.tokenizer, pack_format(self.model.recipe))

    def _read(self, messages: Sequence[Message], encoded: Encoded) -> Boundary:
        """The boundary of a prompt, which `encoded` begins with."""
        decoder, tokens = self.model.model.decoder, head_of(encoded)
        if self.boundary is None or (self.tier == "features" and digest_of(encoded, tokens) != self.head):
            # Of features: any text may stand before the video.
            self.boundary = drained(read_video_prompt(self.model.model, encoded, self.medium, self._piece))
            self.head, self.messages = digest_of(encoded, tokens), messages
            self.key = self.key.with_(prefix=prefix_of(encoded))
        self._check(encoded)
        if self.boundary.cut < question_cut(decoder.segments, schedule(decoder.segments, [self.boundary.vision])):
            self.boundary = advance(decoder, self.boundary, self._piece)
        return self.boundary

    def check(self, messages: Sequence[Message]) -> None:
        """StateError where a conversation has another text before the video than this state."""
        if self.tier == "state":
            self._check(self._encode(messages))

    def _check(self, encoded: Encoded) -> None:
        if digest_of(encoded, head_of(encoded)) != self.head:
            self.key.check(self.key.with_(prefix=prefix_of(encoded)), self.where)
            raise StateError(self.where, "its prompt tells other times of its frames: make it anew", "time")

    @property
    def _piece(self) -> int:
        return self.model.recipe.eval.tokens_per_piece

    @property
    def where(self) -> str:
        """For messages."""
        return f"the state of {self.video or 'frames in memory'}"

    # ---- places -------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> VideoState:
        """The same with its tensors elsewhere: on the host ("cpu") a question copies what it needs to the model's
        device, for itself alone."""
        medium = medium_of(
            vars(self.medium), self.medium.times, {t: f.to(device) for t, f in self.medium.features.items()}
        )
        boundary = None if self.boundary is None else self.boundary.to(device)
        return VideoState(self.model, self.key, medium, self.messages, boundary, self.head, self.video)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, whole or not at all. OSError where the disk does not take it: the state itself stays."""
        tensors: dict[str, Tensor] = {"times": torch.as_tensor(self.medium.times)}
        if self.tier == "features":
            tensors |= {f"features.{tower}": f for tower, f in self.medium.features.items()}
        else:
            assert self.boundary is not None
            tensors |= {f"boundary.{name}": t for name, t in self.boundary.tensors().items()}
        write_state(Path(path), tensors, self.header())
        return Path(path)

    def header(self) -> dict[str, Any]:
        """What the file says of itself, in JSON."""
        found = {
            "tier": self.tier,
            "timeviper": VERSION,
            "run": str(self.model.export.absolute()),
            "overrides": list(self.model.overrides),
            "video": self.video,
            "key": vars(self.key),
            "head": self.head,
            "messages": list(self.messages),
            "frames": self.frames,
            **{name: getattr(self.medium, name) for name in FACTS},
        }
        if self.tier == "state" and self.boundary is not None:
            found |= {name: getattr(self.boundary, name) for name in ("vision", "text", "cut")}
        return found

    @classmethod
    def read(
        cls,
        file: StateFile,
        model: LoadedModel,
        device: torch.device | str | None = None,
        until: float | None = None,
    ) -> VideoState:
        """From a file, for a model. StateError if it is not whole, or is not of this model, naming what differs. until:
        as for `load_state`."""
        where, place = str(file.path), model.device if device is None else device
        tier, messages, head, facts = read_facts(file)
        try:
            key = StateKey.from_dict(file.header["key"])
        except (KeyError, TypeError) as error:
            raise StateError(where, f"its header lacks the key of a state ({error!r}): make it anew") from error
        ours = model.state_key.with_(content=key.content, sampler=key.sampler, prefix=key.prefix, salt=key.salt)
        key.check(ours, where, OF_FEATURES if tier == "features" else tuple(FIELDS))
        name = str(file.header.get("video", ""))
        if tier == "features":
            times, features = read_features(file, model, place)
            return cls(model, ours, medium_of(facts, times, features), messages, None, head, name)
        times, boundary, mark = read_boundary(file, model, place, until)
        if mark is not None:
            head, key = mark.head, key.with_(content=mark.content)
            facts |= {"duration": mark.seconds, "count": mark.frames}
        return cls(model, key, medium_of(facts, times, {}), messages, boundary, head, name)


def medium_of(facts: Any, times: np.ndarray, features: dict[str, Tensor]) -> StoredFrames:
    none = np.zeros((0, 3, 1, 1), np.uint8)
    return StoredFrames(none, times, **{name: facts[name] for name in FACTS}, features=features)
