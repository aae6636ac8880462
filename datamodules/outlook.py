"""What a run will draw from each source: shares and epochs, from the plan alone; a note where few come often."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from timeviper.config.curriculum import stretches
from timeviper.config.settings import TrainConfig
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import Plan

LOOKED_AT = 2000  # samples of a stretch that are drawn to tell how many the rest of it draws
OFTEN = 100  # epochs from which a source is named: no sample teaches anything more when it comes so often


@dataclass(frozen=True)
class Outlook:
    """Of one source, over all steps of a run."""

    name: str
    conversations: int
    drawn: float
    """Conversations that are read, each time counted."""
    share: float
    """Of the samples of all sources."""
    bounded: bool
    """Whether `epochs` bounds it."""

    @property
    def epochs(self) -> float:
        return self.drawn / self.conversations

    def __str__(self) -> str:
        epochs = f"{self.epochs:,.0f}" if self.epochs >= 10 else f"{self.epochs:.2g}"
        kind = "conversation" if self.conversations == 1 else "conversations"
        return f"{self.name} {self.share:.0%} of the samples, {epochs} epochs of {self.conversations:,} {kind}"


def outlook(plan: Plan, train: TrainConfig) -> list[Outlook]:
    """Of every source. Beyond `LOOKED_AT` samples of a stretch of steps with the same settings, its first steps count
    for the rest: sources are drawn in fixed shares, so this is right to a sample or so in a hundred."""
    drawn = dict.fromkeys(plan.sources, 0.0)
    for start, steps in stretches(train):
        counted: Counter[str] = Counter()
        looked_at = 0
        try:
            for step in islice(plan.steps(start, begin=start), steps):
                counted.update(step.drawn)
                looked_at += 1
                if counted.total() >= LOOKED_AT:
                    break
        except UsedUp:
            looked_at = steps  # what is left was drawn
        for name, count in counted.items():
            drawn[name] += count * steps / max(looked_at, 1)
    for name, source in plan.sources.items():
        if (most := plan.data.sources[name].epochs) is not None:
            drawn[name] = min(drawn[name], most * len(source))
    total = max(sum(drawn.values()), 1)
    return [
        Outlook(name, len(s), drawn[name], drawn[name] / total, plan.data.sources[name].epochs is not None)
        for name, s in plan.sources.items()
    ]


def too_often(found: list[Outlook]) -> list[str]:
    """Notes on sources whose samples come again and again while others hardly begin, with what bounds them."""
    notes = []
    for source in found:
        if source.epochs < OFTEN or source.bounded:
            continue
        key, others = f"data.sources.{source.name}", len(found) > 1
        weight = f"{key}.weight lowers its share; " if others else ""
        notes.append(
            f"{source}: each is seen {source.epochs:,.0f} times, and learned by heart. {weight}{key}.epochs=10 ends it "
            f"after 10 epochs{'' if others else ', and train.steps ends the stage sooner'}."
        )
    return notes
