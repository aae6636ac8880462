"""What `timeviper analyse flow` is asked: edges, kinds of mixers, places along the depth."""

from __future__ import annotations

from dataclasses import dataclass

from timeviper.analysis.cut import mixers
from timeviper.analysis.flow import EDGES, ROADS, SWEEPS, Sweep
from timeviper.analysis.options import Words, whole
from timeviper.model.decoder import Decoder

SETTINGS = ("edges", "layers", "mixers", "at", "samples")


@dataclass(frozen=True)
class FlowOptions:
    """What is asked; see `read_options`."""

    edges: tuple[str, ...]
    roads: tuple[str, ...]
    sweep: Sweep
    at: list[int] | None
    samples: int
    notes: tuple[str, ...] = ()
    """What was asked and cannot be: sentences."""


def read_options(words: Words, decoder: Decoder) -> FlowOptions:
    """From what was typed. Raises ConfigError with all that is wrong."""
    layout = decoder.cfg.layout
    edges = words.names("edges", EDGES, [*EDGES])
    roads, notes = _roads(words, decoder)
    sweep = _sweep(words, len(mixers(layout)))
    at = words.blocks("at", layout)
    samples = words.number("samples", whole(1), "a whole number, 1 or more", 100)
    words.check()
    return FlowOptions(edges, roads, sweep, at, int(samples), notes)


def _roads(words: Words, decoder: Decoder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is cut together, a curve each; what the model does not have is left out, and said."""
    there = {letter for letter in "M*" if letter in decoder.cfg.layout} | ({"T"} if len(decoder.transv) else set())
    usual = "*,M,*M,*MT" if "T" in there else "*,M,*M"
    asked = [word.strip() for word in words.own.get("mixers", usual).split(",") if word.strip()]
    if wrong := [word for word in asked if not set(word) <= ROADS.keys()]:
        legend = ", ".join(f"{letter} {name}" for letter, name in ROADS.items())
        words.wrong("mixers", ",".join(asked), f"has {wrong[0]}: write letters of {legend}, such as *,M,*M or *MT.")
        return (), ()
    lacks = [letter for letter in ROADS if letter not in there and any(letter in word for word in asked)]
    notes = tuple(f"This model has no {ROADS[letter]}: what is said of {letter} is left out." for letter in lacks)
    # In the order of ROADS, so that *M and M* are one.
    roads = ["".join(letter for letter in ROADS if letter in word and letter in there) for word in asked]
    roads = [*dict.fromkeys(road for road in roads if road)]
    if not roads:
        words.wrong(
            "mixers", ",".join(asked), f"names nothing that this model has, which is {', '.join(sorted(there))}."
        )
    return tuple(roads), notes


def _sweep(words: Words, most: int) -> Sweep:
    typed = words.own.get("layers", "from")
    kind, colon, width = typed.partition(":")
    if kind not in SWEEPS or (colon and kind != "window"):
        kinds = ", ".join(f"{k} ({v})" for k, v in SWEEPS.items())
        words.wrong("layers", typed, f"must be one of {kinds}; with window: how many mixers, such as window:3.")
        return Sweep("from")
    if kind == "window" and not (width.isdigit() and 1 <= int(width) <= most):
        words.wrong("layers", typed, f"needs a width in mixers, 1 to {most}, such as window:{min(3, most)}.")
        return Sweep("window")
    return Sweep(kind, int(width) if kind == "window" else 1)
