"""Schedules of TransV by name: `model.transv.schedule` in place of stages of one's own."""

from __future__ import annotations

from collections.abc import Iterator

from timeviper.config.checks.finding import Finding
from timeviper.config.model import ModelConfig, TransVConfig, TransVStage


def progressive(layout: str, keep: float) -> dict[str, TransVStage]:
    """A stage before each attention block, evenly spaced; each leaves the same share of what reaches it, the last
    one `keep` of all. So every attention block costs less than the one before (after PyramidDrop, arXiv 2410.17247)."""
    places = [i for i, letter in enumerate(layout) if letter == "*"]
    shares = [keep ** ((i + 1) / len(places)) for i in range(len(places))]
    return {f"at{place}": TransVStage(place, share) for place, share in zip(places, shares)}


SCHEDULES = {"progressive": progressive}


def expand(model: ModelConfig) -> Iterator[Finding]:
    """Write the stages of a named schedule into `model.transv.stages`, where everything else reads them."""
    transv: TransVConfig = model.transv
    if not transv.schedule:
        return
    if transv.stages:
        message = f"makes its own stages; there are {', '.join(transv.stages)} too. Leave one of the two out."
        yield Finding("model.transv.schedule", message)
    elif "*" not in model.decoder.layout:
        yield Finding("model.transv.schedule", "has a stage before each attention block, and the layout has none.")
    else:
        transv.stages = SCHEDULES[transv.schedule](model.decoder.layout, transv.keep)
        transv.schedule = ""
