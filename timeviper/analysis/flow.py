"""Where vision flows into text: edges from vision tokens to others are cut, by depth and by kind of mixer.

After the information blocking of the paper (arXiv 2511.16595, 3.2, figure 3; Kaduri et al., arXiv 2411.17491), which
cuts attention alone. Here a cut holds in Mamba-2 blocks, too (`cut.py`), because that is the other road. Everything is
teacher-forced on held-out samples; a sample's answer is right when each of its tokens is the most probable one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from timeviper.analysis.cut import cutting, mixers
from timeviper.analysis.samples import blind
from timeviper.analysis.scores import Judge, Scores
from timeviper.analysis.walk import Walk
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack

EDGES = {
    "V-I": (Kind.INSTRUCTION,),
    "V-A": (Kind.ANSWER,),
    "V-IA": (Kind.INSTRUCTION, Kind.ANSWER),
}
ROADS = {"*": "attention", "M": "Mamba-2", "T": "TransV"}
SWEEPS = {
    "from": "from a block to the last",
    "until": "from the first block to one",
    "only": "in one block",
    "window": "in some neighbouring blocks around one",
}
WHOLE, BLIND, TEXT = "whole", "blind", "text"


@dataclass(frozen=True)
class Sweep:
    """Which mixers are cut when a curve stands at one of them."""

    kind: str
    width: int = 1
    """Mixers of a window."""

    def blocks(self, there: Sequence[int], place: int) -> list[int]:
        """Out of `there`, all mixers."""
        i = there.index(place)
        if self.kind == "from":
            return list(there[i:])
        if self.kind == "until":
            return list(there[: i + 1])
        first = i - (self.width - 1) // 2 if self.kind == "window" else i
        return list(there[max(first, 0) : first + (self.width if self.kind == "window" else 1)])

    def __str__(self) -> str:
        return f"window:{self.width}" if self.kind == "window" else self.kind


@dataclass(frozen=True)
class Cut:
    """One forward pass: which tokens do not know which, and where."""

    edge: str
    blocks: tuple[int, ...]
    transfers: tuple[str, ...]
    null: bool = False
    """A random set of as many tokens is hidden in place of the vision tokens."""

    @property
    def name(self) -> str:
        """The same for the same cut, in every process."""
        blocks, transfers = ",".join(map(str, self.blocks)), ",".join(self.transfers)
        return f"{self.edge} {blocks} {transfers}{' null' if self.null else ''}"


@dataclass(frozen=True)
class Curve:
    """What is cut at each place along the depth."""

    edge: str
    roads: str
    """Letters of `ROADS`."""
    null: bool
    cuts: dict[int, Cut]
    """By block."""


def curves(
    decoder: Decoder, edges: Sequence[str], roads: Sequence[str], sweep: Sweep, at: Sequence[int] | None = None
) -> list[Curve]:
    """Every curve that is asked for, and for each edge the null curve of the roads that are named last.

    at: the blocks where they stand; None: all mixers.
    """
    there = mixers(decoder.cfg.layout)
    made = []
    for edge in edges:
        for letters, null in [*((r, False) for r in roads), *((r, True) for r in roads[-1:])]:
            cuts = {}
            for place in there if at is None else at:
                reached = sweep.blocks(there, place)
                blocks = tuple(b for b in reached if decoder.cfg.layout[b] in letters)
                cuts[place] = Cut(edge, blocks, _transfers(decoder, reached) if "T" in letters else (), null)
            made.append(Curve(edge, letters, null, cuts))
    return made


def _transfers(decoder: Decoder, blocks: Sequence[int]) -> tuple[str, ...]:
    """TransV stages that hand something on before one of these mixers; one behind the last mixer counts as its."""
    there, found = mixers(decoder.cfg.layout), []
    for segment in decoder.segments:
        if segment.name in decoder.transv:
            start = segment.blocks.start
            if next((b for b in there if b >= start), there[-1]) in blocks:
                found.append(segment.name)
    return tuple(found)


def passes(made: Sequence[Curve]) -> list[Cut]:
    """The forward passes behind some curves, each once; a cut of nothing needs none."""
    return [*dict.fromkeys(cut for curve in made for cut in curve.cuts.values() if cut.blocks or cut.transfers)]


@torch.no_grad()
def measure(model: TimeViper, pack: Pack, cuts: Sequence[Cut]) -> Iterator[tuple[Cut | str, Scores]]:
    """Scores of every sequence of a pack: as it is, blind, as a run that never saw a frame (`TEXT`), and under cuts.

    One pass through the decoder each, from the first block that a cut changes; tower once, and once blind.
    """
    decoder = model.decoder
    walk = Walk(decoder, model.embed(pack), pack)
    judge = Judge(decoder, pack, walk.end())
    yield WHOLE, judge.scores(judge.hidden)
    yield BLIND, judge.scores(Walk(decoder, model.embed(blind(pack)), pack).end())
    everything = Cut("V-IA", tuple(mixers(decoder.cfg.layout)), tuple(decoder.transv))
    starts = {s.name: s.blocks.start for s in decoder.segments}
    for name, cut in [(TEXT, everything), *((c, c) for c in sorted(cuts, key=lambda c: _start(c, starts)))]:
        walk.to(_start(cut, starts))
        hide, rows = tokens_of(pack, cut)
        with cutting(decoder, hide, rows, cut.blocks, cut.transfers):
            yield name, judge.scores(walk.end())


def _start(cut: Cut, stages: dict[str, int]) -> int:
    return min([*cut.blocks, *(stages[name] for name in cut.transfers)])


def tokens_of(pack: Pack, cut: Cut) -> tuple[Tensor, Tensor]:
    """`[L]` bool twice: what a cut hides, and from whom."""
    kinds = torch.tensor([int(k) for k in EDGES[cut.edge]], dtype=pack.kind.dtype, device=pack.kind.device)
    vision, rows = pack.kind == Kind.VISION, torch.isin(pack.kind, kinds)
    return (random_set(pack, vision, rows) if cut.null else vision), rows


def random_set(pack: Pack, vision: Tensor, rows: Tensor) -> Tensor:
    """`[L]` bool: in each sequence as many tokens as it has of vision, drawn among those before its last receiver that
    are no receivers themselves; fewer where there are fewer. A sample's set depends on its key alone."""
    hide = torch.zeros(len(vision), dtype=torch.bool)
    parts = zip(
        pack.keys, Bounds(pack.lengths).offsets, vision.cpu().split(pack.lengths), rows.cpu().split(pack.lengths)
    )
    for key, start, seen, hears in parts:
        if not hears.any():
            continue
        last = int(hears.nonzero().max())
        others = (~hears[:last]).nonzero().squeeze(1)
        seed = int.from_bytes(sha256(key.encode()).digest()[:6], "big")
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
        hide[start + others[order[: int(seen.sum())]]] = True
    return hide.to(vision.device)


def vision_share(pack: Pack, edge: str) -> list[float]:
    """Which share of a random set is vision, of each sequence."""
    hide, _ = tokens_of(pack, Cut(edge, (), (), null=True))
    vision = (pack.kind == Kind.VISION) & hide
    pairs = zip(vision.split(pack.lengths), hide.split(pack.lengths))
    return [float(v.sum() / h.sum()) if h.any() else 0.0 for v, h in pairs]
