"""Held-out samples of a run as packs, each with its right answer, and the same packs without their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from timeviper.analysis.subject import AnalysisError, Subject
from timeviper.datamodules.build import class_datasets, pack_format
from timeviper.datamodules.cost import Item
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.patience import StoreUnusable
from timeviper.inference.held_out import GREY
from timeviper.pack import Pack


@dataclass
class Samples:
    """`count` samples with frames, the same every time (`Subject.items`); the last answer of each is supervised."""

    subject: Subject
    count: int
    skipped: list[str] = field(default_factory=list)
    """Those that could not be read, once they were tried: `key: reason`."""

    @cached_property
    def bins(self) -> list[list[Item]]:
        """Which go through the model together: at most data.tokens_per_pack tokens without TransV, or one sample.

        AnalysisError where no held-out sample has frames.
        """
        found: list[list[Item]] = []
        room = 0
        for item in self.subject.items(self.count):
            if not found or item.tokens > room:
                found.append([])
                room = self.subject.recipe.data.tokens_per_pack
            found[-1].append(item)
            room -= item.tokens
        return found

    @cached_property
    def reader(self) -> PackReader:
        recipe = self.subject.recipe
        form = replace(pack_format(recipe), split=False, supervise="last")
        return PackReader(
            self.subject.tokenizer, form, class_datasets(recipe.data.val), cache=BlockCache.of(recipe.data)
        )

    def pack(self, items: Sequence[Item]) -> Pack | None:
        """What can be read of some samples, on the model's device; None: nothing. StoreUnusable as training does."""
        parts = []
        for item in items:
            batch = self.reader[StepPlan(0, self.subject.recipe.data.frames, ((item,),))]
            if batch.away:
                raise StoreUnusable(batch.away)
            self.skipped += [f"{lost.key}: {lost.reason}" for lost in batch.skipped]
            parts += [pack for pack in batch.packs if pack.num_vision and pack.num_labels]
        return Pack.join(parts).to(self.subject.device) if parts else None

    def none_read(self) -> AnalysisError:
        """When all of them were tried in vain."""
        told = "; ".join(self.skipped[:3]) or "none of them has frames and an answer"
        return AnalysisError(f"{self.subject.export}: no held-out sample could be read: {told}")


def blind(pack: Pack) -> Pack:
    """The same pack with every frame grey."""
    grey = pack.frames.new_full((pack.num_frames, *pack.frames.shape[1:]), GREY)
    return replace(pack, frames=grey, features={}, from_features=[], goes_on=[])
