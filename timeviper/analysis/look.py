"""Which seconds of a video an answer used: what its rows read of every stretch of time, in every block.

The prompt goes through the model twice, by the calls of `ask`: the answer first, then the sums (`watch.py`). The share
of a stretch in a block is the mean, over query rows and heads, of what a row reads of it over all that the row reads:
sizes of |M| or attention times what they weigh. Beside it a null line: what the same tokens would get by geometry
alone, of an attention that looks everywhere alike, of a scan that forgets at each head's mean rate and reads all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timeviper.analysis.lines import PARTS, Line, behind_media, buckets_of, line_of, rounded, stretches
from timeviper.analysis.look_options import Options, Rows, check
from timeviper.analysis.watch import Sums, results, watch_sums, watch_tails
from timeviper.datamodules.build import pack_format
from timeviper.inference.answer import Answer, Followed, Sampling
from timeviper.inference.ask import LoadedModel
from timeviper.inference.generate import Part
from timeviper.inference.question import OnFrames, Question, read_question
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Block, Decoder
from timeviper.model.ranking import ROWS
from timeviper.model.state import DecoderState
from timeviper.pack import Kind

THUMBS, TALL = 48, 96  # frames of a film strip, and pixels of each at most


@dataclass(frozen=True)
class Look:
    answer: Answer
    options: Options
    layout: str
    row_tokens: list[str]
    """The tokens whose rows were looked at, as text."""
    nats: float
    """-log p of the answer, its tokens together."""
    edges: list[float]
    """Of the stretches, in seconds: one more than there are."""
    lines: list[Line]
    tokens_per_frame: int
    thumbs: dict[int, NDArray[np.uint8]] = field(repr=False)
    """RGB `[h, w, 3]` of some frames, by number: of those that survived a stage."""
    followed: Followed = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Every number that is drawn; of the answer, what `ask --json` says."""
        options = self.options
        return {
            "schema": 1,
            **self.answer.as_dict(),
            "nats": round(self.nats, 6),
            "rows": {"which": options.rows, "tokens": self.row_tokens},
            "method": options.method,
            "truth": options.truth,
            "edges": self.edges,
            "layout": self.layout,
            "blocks": [
                {
                    "block": line.block,
                    "kind": line.kind,
                    "share": rounded(line.share),
                    "null": rounded(line.null),
                    "vision": round(line.vision, 6),
                    "parts": {name: round(value, 6) for name, value in line.parts.items()},
                    "missing": line.missing,
                    "truth_auc": line.truth_auc,
                }
                for line in self.lines
            ],
        }


def look(model: LoadedModel, question: str, video: str, options: Options, on_frames: OnFrames | None = None) -> Look:
    """Answer a question about a video file, and look where from.

    Raises ConfigError for options that do not fit the model or the video; the rest as `LoadedModel.ask`.
    """
    medium = model.media(video)
    decoder = model.model.decoder
    blocks = check(options, medium, decoder.cfg.layout, video)
    form = pack_format(model.recipe)
    first = Question([{"role": "user", "content": question}], [medium], video)
    longest = options.max_new_tokens or model.recipe.eval.max_new_tokens
    room = (
        behind_media(first.encode(model.tokenizer, form).kind) + longest + 16
    )  # a damaged file may make the text longer
    exact = options.method == "relevance"
    with watch_tails(decoder, blocks, room, exact) as tails:
        followed = model.follow(question, medium, video, Sampling(longest), progress=on_frames is not None)
    streams = streams_of(decoder, followed)
    behind = tails[blocks[0]].seen - len(_of_block(decoder, streams, blocks[0]))  # tokens of the answer that were read
    edges = stretches(medium, options.per)
    kind, per_frame = followed.prompt.kind, model.model.tokens_per_frame
    bucket = buckets_of(kind, behind, followed.answer.frame_times, edges, per_frame)
    asked = _asked(options.rows, kind, behind)
    sums, length = [], len(followed.prompt.ids)
    with torch.inference_mode():
        for block in blocks:
            stream = _of_block(decoder, streams, block)
            here = torch.cat([bucket[stream], bucket[length:]]).to(model.device)
            rows = [number - (length - len(stream)) for number in asked]
            count = len(edges) - 1 + len(PARTS)
            sums.append(Sums(block, cast(Block, decoder.blocks[block]), tails[block], rows, here, count, exact))
        del tails
        thumbs = _Thumbs(_shown(followed.answer))
        with watch_sums(sums):
            nats, state = again(model, followed, behind, longest, thumbs, on_frames)
        seen = results(decoder, sums, state)
    ids = torch.cat([followed.prompt.ids, followed.ids.cpu()])
    return Look(
        answer=followed.answer,
        options=options,
        layout=decoder.cfg.layout,
        row_tokens=[model.tokenizer.decode([int(ids[n])]) for n in asked],
        nats=nats,
        edges=edges,
        lines=[line_of(one, sums[i], len(edges) - 1, options.truth, edges) for i, one in enumerate(seen)],
        tokens_per_frame=per_frame,
        thumbs=thumbs.found,
        followed=followed,
    )


# ---- what is looked at ---------------------------------------------------------------------------------------


def streams_of(decoder: Decoder, followed: Followed) -> list[Tensor]:
    """Which tokens of the prompt each segment's blocks saw, `[l]` int64 on the host."""
    vision = followed.prompt.kind == Kind.VISION
    places, every = torch.nonzero(vision).squeeze(1), torch.arange(len(vision))
    found = [every]
    for segment in decoder.segments[1:]:
        stays = ~vision
        stays[places[followed.survivors[segment.name]]] = True
        found.append(every[stays])
    return found


def _of_block(decoder: Decoder, streams: Sequence[Tensor], block: int) -> Tensor:
    return next(stream for segment, stream in zip(decoder.segments, streams) if block in segment.blocks)


def _asked(rows: Rows, kind: Tensor, behind: int) -> list[int]:
    """Numbers of the query tokens in prompt and answer, at most ROWS, evenly spaced in more."""
    last = len(kind) - 1
    numbers = {
        "last": range(last, last + 1),
        "question": range(len(kind) - behind_media(kind), len(kind)),
        "answer": range(last, last + 1 + behind),  # those that predict it
    }[rows]
    count = min(len(numbers), ROWS)
    return [numbers[i * (len(numbers) - 1) // max(count - 1, 1)] for i in range(count)]


# ---- the second pass ---------------------------------------------------------------------------------------------


def again(
    model: LoadedModel,
    followed: Followed,
    behind: int,
    longest: int,
    change: Callable[[Part], Part] | None,
    on_frames: OnFrames | None,
) -> tuple[float, DecoderState]:
    """The same prompt and the first `behind` tokens of the same answer, by the same calls as before: -log p of the
    answer, and the state."""
    cfg, decoder = model.recipe.eval, model.model.decoder
    _, start = read_question(
        model.model,
        model.tokenizer,
        pack_format(model.recipe),
        followed.asked,
        tokens_per_piece=cfg.tokens_per_piece,
        max_new_tokens=longest,
        change=change,
        on_frames=on_frames,
    )
    return teach(decoder, start.hidden, start.state, followed.ids, behind), start.state


@torch.inference_mode()
def teach(decoder: Decoder, hidden: Tensor, state: DecoderState, ids: Tensor, behind: int) -> float:
    """-log p of an answer `ids [n]` after a prompt that left `hidden [1, D]` and `state`; its first `behind` tokens
    are read, as when it was written."""
    nats = 0.0
    for n in range(max(behind, len(ids))):
        nats -= float(decoder.project(hidden)[0].double().log_softmax(-1)[ids[n]])
        if n < behind:
            hidden = decoder(decoder.embed(ids[n : n + 1]), Bounds([1], ids.device), state=state).hidden
    return nats


class _Thumbs:
    """Catches frames on their way to the model."""

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted, self.done, self.found = set(wanted), 0, dict[int, NDArray[np.uint8]]()

    def __call__(self, part: Part) -> Part:
        if isinstance(part, Tensor):
            for number in range(self.done, self.done + len(part)):
                if number in self.wanted:
                    every = -(-part.shape[-1] // TALL)
                    pixels = part[number - self.done, :, ::every, ::every].permute(1, 2, 0)
                    self.found[number] = pixels.contiguous().cpu().numpy().copy()
            self.done += len(part)
        return part


def _shown(answer: Answer) -> list[int]:
    """Frames of the film strip: of those that survive any stage those with most tokens behind the last one, then behind
    the one before; of equals evenly spaced ones."""
    stages = list(answer.survivors.values()) or [[1] * len(answer.frame_times)]
    counts = np.array(stages[::-1])  # the last stage first
    groups = sorted({tuple(column) for column in counts.T.tolist() if any(column)}, reverse=True)
    chosen: list[int] = []
    for group in groups:
        equal, left = np.flatnonzero((counts == np.array(group)[:, None]).all(0)), THUMBS - len(chosen)
        if left > 0:
            steps = np.linspace(0, len(equal) - 1, min(left, len(equal))).astype(int)
            chosen += equal[steps].tolist()
    return sorted(chosen)
