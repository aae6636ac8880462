"""A rank's plan of one step becomes packs: read, decode, put into chat form, join. Runs in loader processes."""

from __future__ import annotations

import multiprocessing
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from timeviper.config import ChatConfig
from timeviper.datamodules.chat import Media, encode_chat
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.fetch import Fetched, Record, fetch, local_texts
from timeviper.datamodules.frames.stored import StoredFrames
from timeviper.datamodules.frames.video import Frames
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.plan import Item, StepPlan
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.patience import StoreUnusable
from timeviper.datamodules.room import Room
from timeviper.datamodules.shards.schema import FEATURES, PLACEHOLDER
from timeviper.pack import Lost, Pack, StepBatch
from timeviper.tokenizer import Tokenizer

TOKEN_BYTES = 17  # ids and labels int64, kind uint8
SLOT = 512  # bytes a loader process: the time when it began with a sample, then its key, cut to fit


@dataclass(frozen=True)
class PackFormat:
    """All that decides how a sample looks to the model; the same in training, evaluation and `ask`."""

    chat: ChatConfig
    image_size: int
    tokens_per_frame: int
    max_tokens: int
    supervise: Literal["all", "last"] = "all"
    """last: with attention-guided TransV a later question would shape an earlier answer, so only the last counts."""
    split: bool = False
    """Training sees each turn as a sequence of its own, with all that comes before it."""


def build_pack(
    tokenizer: Tokenizer,
    form: PackFormat,
    messages: list[dict[str, str]],
    media: list[Frames],
    *,
    prompt_only: bool = False,
    key: str = "",
    type: str = "",
    cat: Callable[[list[Tensor]], Tensor] = torch.cat,
) -> Pack:
    """One conversation about decoded media as a pack of one sequence, or, if the form splits turns, of one for each.

    cat: joins the frames of its media.
    """
    if form.split and not prompt_only:
        turns = [*_turns(messages, media)]
        parts = [
            build_pack(tokenizer, replace(form, split=False, supervise="last"), *turn, key=key, type=type, cat=cat)
            for turn in turns
        ]
        begun = [0, *(len(shown) for _, shown in turns)]
        for part, (_, shown), old in zip(parts[1:], turns[1:], begun[1:]):
            frames = sum(len(m.times) for m in shown[:old])
            part.frames, part.goes_on = part.frames[frames:], [True]
            part.features = {tower: f[frames:] for tower, f in part.features.items()}
        return Pack.join(parts, cat)
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    if prompt_only and answer:
        messages = messages[:-1]
    encoded = encode_chat(
        tokenizer,
        messages,
        [Media(m.times, m.duration, m.kind) for m in media],
        form.tokens_per_frame,
        form.chat,
        supervise=form.supervise,
        generate=prompt_only,
        max_tokens=form.max_tokens,
    )
    none = torch.zeros(0, 3, form.image_size, form.image_size, dtype=torch.uint8) if not media else None
    stored = [m.features for m in media if isinstance(m, StoredFrames)]  # of all media of a sample or of none
    return Pack(
        ids=encoded.ids,
        labels=encoded.labels,
        kind=encoded.kind,
        lengths=[len(encoded.ids)],
        frames=cat([torch.as_tensor(m.pixels) for m in media]) if none is None else none,
        frame_times=torch.from_numpy(np.concatenate([np.zeros(0), *(m.times for m in media)])),
        frame_counts=[sum(len(m.times) for m in media)],
        keys=[key],
        types=[type],
        answers=[answer],
        features={tower: torch.cat([f[tower] for f in stored]) for tower in (stored[0] if stored else {})},
        from_features=[bool(stored)],
    )


def _turns(messages: list[dict[str, str]], media: list[Frames]) -> Iterator[tuple[list[dict[str, str]], list[Frames]]]:
    """The conversation up to each answer, with the media that stand there; all stand first where nothing says so."""
    marks = [len(PLACEHOLDER.findall(m["content"])) if m["role"] == "user" else 0 for m in messages]
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            yield messages[: i + 1], media[: sum(marks[: i + 1])] if any(marks) else media


class PackReader(Dataset[StepBatch]):
    """Maps a `StepPlan` (the sampler's item) to a `StepBatch`; holds no state between calls."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        form: PackFormat,
        classes: Mapping[str, ClassDataset] | None = None,
        *,
        prompt_only: bool = False,
        reading: Reading | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        """`classes`: the sources that are Python classes, by name. `reading`: where the sample at hand is noted.

        `cache` keeps what was read of remote shards (None: the default folder).
        """
        self.tokenizer = tokenizer
        self.form = form
        self.classes = classes or {}
        self.prompt_only = prompt_only
        self.reading = reading
        self.cache = cache

    def __getitem__(self, plan: StepPlan) -> StepBatch:
        return self.read(plan)

    def read(self, plan: StepPlan, room: Room | None = None) -> StepBatch:
        """A step, a rank's share of one, or a part of that; room: where its frames are decoded."""
        try:
            return self._read_step(plan, room or Room())
        except StoreUnusable as error:  # the other ranks must hear of it before they wait for this one
            blanks = [Pack.blank(self.form.image_size) for _ in plan.packs or [None]]
            return StepBatch(plan.step, blanks, away=str(error))

    def _read_step(self, plan: StepPlan, room: Room) -> StepBatch:
        batch = StepBatch(plan.step, [])
        for item in plan.too_long:
            reason = f"needs {item.cost:.0f} tokens with {item.num_frames} frames, more than data.tokens_per_pack"
            if (turns := len(item.sequences)) > 1:
                reason += f", for {turns} turns that data.turns=split reads together; whole would learn the last alone"
            batch.skipped.append(Lost(item.unit.source, item.unit.key, reason))
        for items in plan.packs:
            parts = self._parts(items, plan, batch, room)
            batch.packs.append(Pack.join(parts, room.cat) if parts else Pack.blank(self.form.image_size))
        if not batch.packs:  # the tail of a held-out set: this rank only keeps the others company
            batch.packs.append(Pack.blank(self.form.image_size))
        return batch

    def _parts(self, items: Sequence[Item], plan: StepPlan, batch: StepBatch, room: Room) -> list[Pack]:
        """The samples, or of each the first spare that can be read; what happened is noted in the batch.

        One thing after the other for all of them: each takes a third of the time that it takes in turns with decoding.
        """
        texts = [self._texts(item.unit) for item in items]
        fetched = [self._fetched(item.unit, text, plan, room) for item, text in zip(items, texts)]
        packs = [self._pack(item.unit, found, batch, room) for item, found in zip(items, fetched)]
        parts = []
        for item, pack in zip(items, packs):
            source = item.unit.source
            if not isinstance(pack, str):
                batch.used[source] = batch.used.get(source, 0) + 1
                parts.append(pack)
            elif (spare := self._spare(item, pack, plan, batch, room)) is not None:
                batch.replaced[source] = batch.replaced.get(source, 0) + 1
                parts.append(spare)
        return parts

    def _spare(self, item: Item, reason: str, plan: StepPlan, batch: StepBatch, room: Room) -> Pack | None:
        """What stands in for a sample that cannot be read. A spare that cannot either is counted when its own turn
        comes, not here."""
        lost = Lost(item.unit.source, item.unit.key, reason)
        batch.skipped.append(lost)
        for spare in item.spares:
            fetched = self._fetched(spare.unit, self._texts(spare.unit), plan, room)
            if not isinstance(pack := self._pack(spare.unit, fetched, batch, room), str):
                return pack
            lost.reason += f" (nor could {spare.unit.key} stand in: {pack})"
        return None

    def _texts(self, unit: Unit) -> Record | str | None:
        """The json of a sample on a disk, or why it cannot be used; None: it comes with the media."""
        try:
            return local_texts(unit, self.classes)
        except (ValueError, OSError) as error:
            return str(error)

    def _fetched(self, unit: Unit, texts: Record | str | None, plan: StepPlan, room: Room) -> Fetched | str:
        """One sample, or why it cannot be used. StoreUnusable where that says nothing about the sample."""
        if isinstance(texts, str):
            return texts
        try:
            with self.reading.sample(unit.key) if self.reading else nullcontext():
                return fetch(unit, plan.frames, self.form.image_size, self.classes, self.cache, room.empty, texts)
        except StoreUnusable:
            raise
        except (ValueError, OSError) as error:
            return str(error)

    def _pack(self, unit: Unit, fetched: Fetched | str, batch: StepBatch, room: Room) -> Pack | str:
        if isinstance(fetched, str):
            return fetched
        try:
            pack = build_pack(
                self.tokenizer,
                self.form,
                fetched.conversation["messages"],
                fetched.media,
                prompt_only=self.prompt_only,
                key=unit.key,
                type=unit.spec.type,
                cat=room.cat,
            )
        except ValueError as error:
            return str(error)
        if fetched.missing:
            wanted = fetched.missing + sum(len(m.times) for m in fetched.media)
            reason = f"{fetched.missing} of {wanted} frames could not be decoded"
            batch.truncated.append(Lost(unit.source, unit.key, reason))
        return pack


def plan_bytes(plan: StepPlan, image_size: int) -> int:
    """Bytes of a step, or of a part of one, when it is read."""
    return sum(item_bytes(item, image_size) for pack in plan.packs for item in pack)


def item_bytes(item: Item, image_size: int) -> int:
    stored = item.unit.record.members.get(FEATURES)
    return (stored.size if stored else item.read * 3 * image_size**2) + item.tokens * TOKEN_BYTES


class Reading:
    """Which sample each loader process is reading, visible to the training process: for a message when one hangs.

    A slot for each process in shared memory; it goes to them as loader processes are started, not by pickle.

    One writer a slot and no lock: a message that meets a change may show a key that is cut.
    """

    def __init__(self, workers: int) -> None:
        self.slots = multiprocessing.get_context("spawn").RawArray("c", max(workers, 1) * SLOT)
        self.slot = 0  # of this process

    @contextmanager
    def sample(self, key: str) -> Iterator[None]:
        """Within it, this process reads the sample `key`."""
        start = self.slot * SLOT
        text = struct.pack("d", time.time()) + key.encode()[: SLOT - 9]
        self.slots[start : start + SLOT] = text.ljust(SLOT, b"\0")
        try:
            yield
        finally:
            self.slots[start : start + SLOT] = bytes(SLOT)

    def now(self) -> list[tuple[str, float]]:
        """(key, seconds since its process began with it) of every sample that is being read, longest first."""
        raw = bytes(self.slots[:])  # pyright: ignore[reportArgumentType]
        found = []
        for start in range(0, len(raw), SLOT):
            (began,) = struct.unpack_from("d", raw, start)
            if began:
                key = raw[start + 8 : start + SLOT].rstrip(b"\0").decode(errors="replace")
                found.append((key, time.time() - began))
        return sorted(found, key=lambda f: -f[1])
