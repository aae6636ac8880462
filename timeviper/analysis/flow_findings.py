"""What the figures of `timeviper analyse flow` say, in sentences, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from timeviper.analysis.flow import BLIND, ROADS, TEXT, WHOLE
from timeviper.analysis.flow_study import Flow
from timeviper.analysis.scores import Band

CLIFF = 0.25  # of a curve's highest KL: a smaller step between two places is not called one
NOTHING = 0.005  # nats a token: less than this is called no change


def findings(flow: Flow) -> list[str]:
    """Sentences that the figures bear."""
    return [*_reached(flow), *_missed(flow), *_cliffs(flow), *_null(flow)]


def _reached(flow: Flow) -> Iterable[str]:
    """Whether the full cut is as good as blindness."""
    text, blind = flow.bands[TEXT, "right"], flow.bands[BLIND, "right"]
    gap = flow.difference(flow.scores[BLIND], flow.scores[TEXT], "right")
    verdict = "no difference is shown" if gap.low <= 0 <= gap.high else "they differ"
    yield (
        f"Text that never knew a frame (every edge cut, in all mixers and in TransV) is right {text.mean:.3f} of the "
        f"time, on grey frames {blind.mean:.3f}, the model as it is {flow.bands[WHOLE, 'right'].mean:.3f}: {verdict} "
        f"between the first two ({signed(gap)})."
    )
    for curve in (flow.curve("V-IA", roads) for roads in flow.options.roads):
        if (
            curve is not None
            and flow.options.sweep.kind == "from"
            and {"*", "M"} & set(flow.layout) <= set(curve.roads)
        ):
            scores = flow.of(curve, min(curve.cuts))
            gap = flow.difference(flow.scores[BLIND], scores, "right")
            yield (
                f"V-IA cut in {named(curve.roads)} from block {min(curve.cuts)} on is right "
                f"{np.mean(scores.right):.3f} of the time: against blind {signed(gap)}."
            )


def _missed(flow: Flow) -> Iterable[str]:
    """What a cut of attention alone misses, at the first place of a sweep to the end."""
    if flow.options.sweep.kind != "from" or "*" not in flow.options.roads:
        return
    for edge in flow.options.edges:
        attention, both = flow.curve(edge, "*"), flow.curve(edge, "*M")
        if attention is None or both is None:
            continue
        place = min(attention.cuts)
        a, b = flow.of(attention, place), flow.of(both, place)
        gap = flow.difference(b, a, "right")
        kl = flow.band(attention, place, "kl").mean, flow.band(both, place, "kl").mean
        missed = 1 - kl[0] / kl[1] if kl[1] > 0 else 0.0
        part = "next to nothing" if missed < 0.05 else f"{missed:.0%}"
        share = f"misses {part} of the {kl[1]:.3g} nats" if kl[1] > NOTHING else "cuts as little"
        told = (
            f"{edge} from block {place} on: attention alone {flow.band(attention, place, 'right').mean:.3f} right, "
            f"with the Mamba-2 blocks {flow.band(both, place, 'right').mean:.3f} ({signed(gap)}). An "
            f"attention-only cut {share}"
        )
        blind = flow.difference(flow.scores[BLIND], a, "right")
        if gap.low > 0 and blind.low > 0:
            told += f", and does not reach the blind score of {flow.bands[BLIND, 'right'].mean:.3f}"
        yield told + "."


def _cliffs(flow: Flow) -> Iterable[str]:
    """Between which neighbours the widest curve of an edge moves most."""
    if flow.options.sweep.kind not in ("from", "until"):
        return
    for edge in flow.options.edges:
        curve = flow.curve(edge, flow.options.roads[-1])
        if curve is None or len(curve.cuts) < 2:
            continue
        places = sorted(curve.cuts)
        kl = [flow.band(curve, place, "kl").mean for place in places]
        steps = [abs(b - a) for a, b in pairwise(kl)]
        i = int(np.argmax(steps))
        if steps[i] < NOTHING:
            yield f"{edge}, {named(curve.roads)}: no step along the depth is larger than {NOTHING:g} nats."
            continue
        if steps[i] < CLIFF * max(kl):
            yield f"{edge}, {named(curve.roads)}: no cliff; the largest step is {steps[i]:.3g} of {max(kl):.3g} nats."
            continue
        crossed = places[i] if flow.options.sweep.kind == "from" else places[i + 1]
        kind = ROADS[flow.layout[crossed]]
        yield (
            f"{edge}, {named(curve.roads)}: the cliff is at block {crossed} ({kind}). Cut {flow.options.sweep} block "
            f"{places[i]} costs {kl[i]:.3g} nats, {flow.options.sweep} block {places[i + 1]} {kl[i + 1]:.3g}."
        )


def _null(flow: Flow) -> Iterable[str]:
    """How the random sets compare where the cut is deepest."""
    for edge in flow.options.edges:
        roads = flow.options.roads[-1]
        curve, null = flow.curve(edge, roads), flow.curve(edge, roads, null=True)
        if curve is None or null is None:
            continue
        costs = {place: flow.band(curve, place, "kl").mean for place in curve.cuts}
        place = max(costs, key=costs.__getitem__)
        gap = flow.difference(flow.of(null, place), flow.of(curve, place), "kl")
        share = float(np.mean(flow.null_vision[edge]))
        verdict = "costs more" if gap.low > 0 else "costs less" if gap.high < 0 else "costs no more that is shown"
        yield (
            f"{edge} at block {place}: hiding the vision tokens {verdict} than hiding as many tokens at random, of "
            f"which {share:.0%} are vision ({signed(gap)} nats)."
        )


def warnings(flow: Flow) -> list[str]:
    told = [*flow.options.notes, *flow.doubts()]
    if not flow.stages:
        told.append("The run has no TransV stage: vision meets text in its mixers alone.")
    return told


def named(roads: str) -> str:
    """Letters in words."""
    return " + ".join(ROADS[letter] for letter in roads)


def signed(gap: Band) -> str:
    return f"{gap.mean:+.3f}, 95 % {gap.low:+.3f} to {gap.high:+.3f}"
