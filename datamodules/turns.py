"""Several turns under attention-guided TransV, which supervises one answer of a sequence: how much that leaves out."""

from __future__ import annotations

from collections.abc import Mapping

from timeviper.config import Recipe
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.mixture import Source

LOOKED_AT = 4096  # units of a source, evenly spaced


def unsupervised_share(sources: Mapping[str, Source], weights: Mapping[str, float]) -> float:
    """Share of the answers' text that stands in other turns than the last, over all sources as they are weighted."""
    lost = every = 0.0
    for name, source in sources.items():
        numbers = range(0, len(source), -(-len(source) // LOOKED_AT))
        specs = [source[i].spec for i in numbers]
        weight = weights.get(name, 0.0) / len(specs)
        every += weight * sum(spec.answer_bytes for spec in specs)
        lost += weight * sum(turn.answer_bytes for spec in specs for turn in spec.turns[:-1])
    return lost / every if every else 0.0


def turns_note(recipe: Recipe, sources: Mapping[str, Source]) -> str:
    """What people must know of it before they train; "" where every answer counts."""
    form = pack_format(recipe)
    if form.supervise == "all" or form.split:
        return ""
    share = unsupervised_share(sources, {name: source.weight for name, source in recipe.data.sources.items()})
    if not share:
        return ""
    guided = [name for name, stage in recipe.model.transv.stages.items() if stage.facts.by_question]
    return (
        f"only the last answer of a conversation is supervised, because model.transv.stages.{guided[0]} chooses by the "
        f"last question: {share:.1%} of the answers' tokens are left out; data.turns=split makes each turn a sequence "
        "of its own, and all count"
    )
