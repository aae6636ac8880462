"""Watching a video while it is made: frames as they come, marks now and then, questions about what there is so far.

TransV counts from the number of frames, which nobody knows yet. So what is kept is cut before the first stage that
drops (`counting_cut`), and who asks lets the blocks from there on read what has come, once for each mark that is asked
about.
The prompt says how long the video is behind its frames, so a sentence of that kind says how long it is so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded, Media, encode_chat, encode_frames
from timeviper.inference.generate import embed_frames
from timeviper.inference.marks import Mark, boundary_at, empty_rows, last_mark, mamba_states, named_marks
from timeviper.inference.state_file import write_state
from timeviper.inference.state_key import StateKey, digest_of, head_of, prefix_of
from timeviper.inference.video_state import VideoState, medium_of
from timeviper.inference.watch import NOTHING
from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.model.boundary import Boundary, counting_cut
from timeviper.model.vision.tower import FRAMES_PER_CHUNK
from timeviper.pack import Kind
from timeviper.tokenizer import Message

if TYPE_CHECKING:
    from timeviper.inference.ask import LoadedModel


class LiveState:
    """What a model has seen of a video so far. `LoadedModel.watch_live` makes it.

    live = model.watch_live()
    live.add(frames, times)            # uint8 [f, 3, S, S] and [f] seconds, as often as there are any
    live.mark(seconds)                 # so much of the video has come
    live.state().ask("What happens?")  # or live.state(until=600)
    """

    def __init__(
        self, model: LoadedModel, messages: Sequence[Message] = NOTHING, max_bytes: int | None = None, video: str = ""
    ) -> None:
        self.model, self.messages, self.max_bytes, self.video = model, list(messages), max_bytes, video
        decoder = model.model.decoder
        self.times: list[float] = []
        self.marks: list[Mark] = []
        self.full = ""
        """Why no more frames are taken; empty while they are."""
        self._cut = counting_cut(decoder.segments)
        self._waits = self._cut < len(decoder.segments)
        self._states = decoder.empty_state(1).segments[: self._cut]
        self._x, self._kind, self._index = empty_rows(decoder.cfg.width, decoder.embeddings.weight)
        self._ids, self._kinds = empty_rows(1, torch.empty(0, dtype=torch.int64))[:2]
        self._content, self._prefix = sha256(), ""
        self._held: list[tuple[NDArray[np.uint8], float]] = []

    @property
    def frames(self) -> int:
        """Frames that have come, those not read yet among them."""
        return len(self.times) + len(self._held)

    def num_bytes(self) -> int:
        """Memory in use, marks included."""
        boundary = 0 if not self.times else self._boundary().num_bytes()
        return boundary + sum(mark.num_bytes() for mark in self.marks)

    def add(self, pixels: NDArray[np.uint8] | Tensor, times: Sequence[float]) -> None:
        """Take frames uint8 `[f, 3, S, S]` with the seconds `[f]` at which they are shown. Towers read them in chunks,
        so the last ones may wait for more, or for a mark.

        Once the context, or `max_bytes`, is full, nothing more is taken: see `full`.
        Raises ValueError for times that go back, or frames of another size."""
        size = pack_format(self.model.recipe).image_size
        if tuple(pixels.shape[1:]) != (3, size, size) or len(pixels) != len(times):
            raise ValueError(f"frames are uint8 [f, 3, {size}, {size}] with f times, got {list(pixels.shape)}")
        for picture, seconds in zip(np.asarray(pixels), times):
            last = self._held[-1][1] if self._held else self.times[-1] if self.times else 0.0
            if seconds < last:
                raise ValueError(f"a frame at {seconds:g} s comes after one at {last:g} s")
            self._held.append((picture, float(seconds)))
            if len(self._held) == FRAMES_PER_CHUNK:
                self.read()

    @torch.inference_mode()
    def read(self) -> None:
        """Let the model read the frames that wait."""
        held, self._held = self._held, []
        if not held or self.full:
            return
        times = [seconds for _, seconds in held]
        new = self._encoded(times)
        seen = self._ids.count
        inner, cfg = self.model.model, self.model.model.decoder.cfg
        if seen + len(new.ids) > cfg.max_tokens:
            self.full = f"the context is full (model.decoder.max_tokens = {cfg.max_tokens:,})"
            return
        if self.max_bytes is not None and self._bytes_with(len(new.ids)) > self.max_bytes:
            self.full = f"the budget of {self.max_bytes / 1e6:,.1f} MB is full (--max-bytes)"
            return
        dispatch.configure(**vars(self.model.recipe.model.kernel))
        pixels = torch.from_numpy(np.stack([picture for picture, _ in held]))
        self._content.update(pixels.numpy().tobytes() + np.array(times).tobytes())
        device = inner.decoder.embeddings.weight.device
        ids, kind = new.ids.to(device), new.kind.to(device)
        for x, _ in embed_frames(inner, ids, kind, [pixels], torch.tensor(times, dtype=torch.float64)):
            bounds = Bounds([len(x)], device)
            for segment, state in zip(inner.decoder.segments, self._states):
                x = inner.decoder.run(segment, x, bounds, state)
            if self._waits:
                self._x.append(x)
        index = torch.arange(seen, seen + len(new.ids), dtype=torch.int32)
        self._ids.append(new.ids[:, None])
        self._kinds.append(new.kind)
        if self._waits:
            self._kind.append(new.kind)
            self._index.append(index)
        self.times += times

    def mark(self, seconds: float) -> Mark | None:
        """Note that so many seconds of the video have come, so that one may ask about them; None: no frame yet."""
        self.read()
        if not self.times:
            return None
        if self.marks and self.marks[-1].frames == len(self.times):
            return self.marks[-1]
        whole, tokens = self._encoded_so_far(), self._ids.count
        head = digest_of(whole, tokens)
        states = mamba_states(self._states)
        seconds = max(seconds, self.times[-1])
        self.marks.append(Mark(seconds, len(self.times), tokens, head, self._content.hexdigest(), states))
        return self.marks[-1]

    def state(self, until: float | None = None) -> VideoState:
        """What was there at the last mark, or at the last one not after `until` seconds. It stays as it is while more
        comes. StateError without such a mark."""
        mark = last_mark(self.marks, until, f"the state of {self.video or 'a live video'}")
        vision = mark.frames * self.model.model.tokens_per_frame
        boundary = boundary_at(self._boundary(), mark, vision)
        times = np.array(self.times[: mark.frames])
        key = self._key(mark)
        medium = medium_of(self._facts(mark), times, {})
        return VideoState(self.model, key, medium, self.messages, boundary, mark.head, self.video)

    def save(self, path: str | Path) -> Path:
        """Write all marks to a file, for `load_state(path, until=...)`. OSError where the disk does not take it."""
        state = self.state()
        assert state.boundary is not None
        tensors = {"times": torch.as_tensor(state.times)} | named_marks(self.marks[:-1])
        tensors |= {f"boundary.{name}": t for name, t in state.boundary.tensors().items()}
        write_state(Path(path), tensors, state.header() | {"marks": [mark.facts() for mark in self.marks]})
        return Path(path)

    def _key(self, mark: Mark) -> StateKey:
        return self.model.state_key.with_(content=mark.content, sampler=self._sampler(), prefix=self._prefix)

    def _sampler(self) -> dict[str, object]:
        return {"fps": self.model.recipe.data.frames.fps, "live": True}

    def _facts(self, mark: Mark) -> dict[str, object]:
        rate = mark.frames / mark.seconds if mark.seconds else 0.0
        return {"duration": mark.seconds, "count": mark.frames, "fps": rate, "kind": "video", "missing": 0}

    def _encoded(self, times: list[float]) -> Encoded:
        """The tokens that these frames add to the prompt."""
        form, tokenizer = pack_format(self.model.recipe), self.model.tokenizer
        if self.times:
            return encode_frames(tokenizer, times, len(self.times), form.tokens_per_frame, form.chat)
        media = [Media(times, times[-1])]
        whole = encode_chat(tokenizer, self.messages, media, form.tokens_per_frame, form.chat, generate=True)
        self._prefix, head = prefix_of(whole), head_of(whole)
        return Encoded(*(t[:head] for t in (whole.ids, whole.labels, whole.kind)))

    def _encoded_so_far(self) -> Encoded:
        ids = self._ids.rows[:, 0].contiguous()
        return Encoded(ids, ids, self._kinds.rows)

    def _boundary(self) -> Boundary:
        x, kind, index = (rows.rows for rows in (self._x, self._kind, self._index))
        vision = int((self._kinds.rows == Kind.VISION).sum())
        return Boundary(self._states, x, kind, index, vision, self._ids.count)

    def _bytes_with(self, more: int) -> int:
        """Bytes in use once so many tokens more have been read, and a mark has been set."""
        now, tokens = self.num_bytes(), max(self._ids.count, 1)
        mark = sum(t.nbytes for t in mamba_states(self._states).values())
        growing = now - mark - sum(m.num_bytes() for m in self.marks) if self.times else 0
        return now + mark + growing * more // tokens
