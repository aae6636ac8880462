"""Parts d and f of `bench_gpu.py`: prefill of hours of video, and decode beside the transformer control, at full size
with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import cast

import torch
from bench_gpu_measure import DTYPE, Peak, largest_error, preset, random_model, timed, tokens, weights_gb
from bench_gpu_page import Case, Part, Row, Setting
from torch import Tensor

from timeviper.config import DecoderConfig, ModelConfig, TransVConfig, TransVStage
from timeviper.inference.prefill import Prefilled, kept_bytes, prefill, prefill_chunks
from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind

FRAMES = (256, 1024, 4096, 10_240)
PART_FRAMES = 256  # frames of a piece
BEFORE, BEHIND = 16, 176  # text tokens before and behind the video: as many as plans assume, 192
TOWER_FRAMES = 256
SHORT = 1024  # frames up to which runs are repeated
TORCH: dict[str, str] = {op: "torch" for op in ("ssd", "conv1d", "attention", "norm")}

SCHEDULES = {  # the longest last, where time may run out
    "published": {"early": TransVStage(7, 0.5, "uniform"), "late": TransVStage(39, 0.1, "attention")},
    "uniform": {"early": TransVStage(7, 0.5, "uniform"), "late": TransVStage(39, 0.1, "uniform")},
    "off": {},
}


@cache
def video_model(setting: Setting) -> TimeViper:
    """nano9b with the transfers of the published schedule; one for all cases of a process."""
    model = preset("nano9b", setting)
    model.transv = TransVConfig(dict(SCHEDULES["published"]))
    return cast(TimeViper, random_model(lambda: TimeViper(model), setting.device))


# ---- d: prefill -----------------------------------------------------------------------------------------


def prefill_cases(setting: Setting) -> list[Case]:
    counts = [max(n // setting.divide, 2) for n in FRAMES]
    cases = [Case("tower", partial(_tower, setting))]
    for frames in dict.fromkeys(counts):
        long = frames > SHORT // setting.divide
        cases += [
            Case(f"{name}, {frames:,} frames", partial(_prefill, setting, name, frames, long)) for name in SCHEDULES
        ]
    return cases


def prompt(setting: Setting, decoder: Decoder, frames: int, a_frame: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, kind) of a random prompt, always the same, in the pieces that come of groups of frames; what stands for
    frames is as large as embeddings of text."""
    device, D, group = setting.device, decoder.cfg.width, max(PART_FRAMES // setting.divide, 1)
    generator = torch.Generator(device).manual_seed(0)
    for first in range(0, frames, group):
        counts = (BEFORE * (first == 0), min(group, frames - first) * a_frame)
        x = torch.randn(sum(counts), D, generator=generator, device=device, dtype=DTYPE) * D**-0.5
        x, kind = of_kind(x, Kind.VISION)
        kind[: counts[0]] = int(Kind.CONTEXT)
        yield x, kind
    x = torch.randn(BEHIND, D, generator=generator, device=device, dtype=DTYPE) * D**-0.5
    yield of_kind(x, Kind.INSTRUCTION)


def of_kind(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    return x, torch.full((len(x),), int(kind), dtype=torch.uint8, device=x.device)


def in_pieces(setting: Setting, decoder: Decoder, frames: int, a_frame: int) -> Prefilled:
    return prefill_chunks(decoder, prompt(setting, decoder, frames, a_frame), frames * a_frame, BEFORE + BEHIND)


def whole(setting: Setting, decoder: Decoder, frames: int, a_frame: int) -> Prefilled:
    x, kind = (torch.cat(parts) for parts in zip(*prompt(setting, decoder, frames, a_frame)))
    return prefill(decoder, x, Bounds([len(x)], x.device), kind)


SIDES: dict[str, tuple[Callable[[Setting, Decoder, int, int], Prefilled], dict[str, str]]] = {
    "in pieces": (in_pieces, {}),
    "whole": (whole, {}),
    "in pieces, torch forms": (in_pieces, TORCH),
}


def _prefill(setting: Setting, name: str, frames: int, long: bool) -> Iterator[Row]:
    model = video_model(setting)
    decoder, a_frame = model.decoder, model.tokens_per_frame
    stages = replace(decoder.transv_cfg, stages=dict(SCHEDULES[name]))
    first: Tensor | None = None
    for side, (way, forms) in SIDES.items():
        if long and forms:  # the torch form of attention takes minutes there where queries are pieces of their keys
            continue
        row: Row = {"TransV": name, "frames": frames, "tokens": frames * a_frame + BEFORE + BEHIND, "prefill": side}
        found: list[Prefilled] = []
        with ExitStack() as held:
            held.enter_context(torch.inference_mode())
            held.enter_context(other_stages(model, stages))
            held.enter_context(dispatch.use(**forms))
            peak = held.enter_context(Peak(setting.device))
            try:
                run = partial(_into, found, partial(way, setting, decoder, frames, a_frame))
                taken = timed(run, setting.device, warm=not long, most=3)
            except torch.OutOfMemoryError as error:  # the other sides may need less
                yield row | {"note": f"out of memory: {str(error).splitlines()[0]}"}
                continue
        with torch.inference_mode(), other_stages(model, stages):
            logits = decoder.project(found[-1].hidden)
            row["kept GB"] = kept_bytes(decoder, frames * a_frame, BEFORE + BEHIND) / 1e9
        row |= {"seconds": taken.ms / 1e3, "runs": taken.runs, "ms a frame": taken.ms / frames}
        row |= {
            "peak GB": peak.gb,
            "above weights GB": peak.extra_gb,
            "left by TransV": ", ".join(f"{n[0]:,}" for n in found[-1].kept.values()),
        }
        if first is not None:
            row["logits off"] = largest_error(logits.T, first.T)
            row["same token"] = "yes" if bool(logits.argmax(-1) == first.argmax(-1)) else "no"
        first = logits if first is None else first
        yield row


def _into(found: list[Prefilled], run: Callable[[], Prefilled]) -> None:
    found.clear()  # not two states at a time
    found.append(run())


def _tower(setting: Setting) -> Iterator[Row]:
    """Random frames through tower, merging and projector; then those and a prompt through all, in groups of 32."""
    model, device = video_model(setting), setting.device
    count, (tower,) = max(TOWER_FRAMES // setting.divide, 2), model.towers.values()
    shape = (count, 3, int(tower.image_size), int(tower.image_size))  # pyright: ignore[reportArgumentType]
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    vision = count * model.tokens_per_frame

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        silence = torch.zeros(BEFORE + BEHIND, dtype=torch.int64, device=device)
        yield of_kind(model.decoder.embed(silence[:BEFORE]), Kind.CONTEXT)
        for group in frames.split(32):
            yield of_kind(model.encode(group).flatten(0, 1), Kind.VISION)
        yield of_kind(model.decoder.embed(silence[BEFORE:]), Kind.INSTRUCTION)

    runs: dict[str, Callable[[], object]] = {
        "tower alone": lambda: model.encode(frames),
        "tower and decoder": lambda: prefill_chunks(model.decoder, watched(), vision, BEFORE + BEHIND),
    }
    for side, run in runs.items():
        with torch.inference_mode(), Peak(device) as peak:
            taken = timed(run, device, most=3)
        row: Row = {"TransV": "published", "frames": count, "tokens": vision + BEFORE + BEHIND, "prefill": side}
        row |= {"seconds": taken.ms / 1e3, "runs": taken.runs, "ms a frame": taken.ms / count}
        yield row | {"peak GB": peak.gb, "above weights GB": peak.extra_gb}


# ---- f: decode ------------------------------------------------------------------------------------------

CONTEXT = 32_768  # tokens that are read before the first is written
STEPS = 32  # tokens that are written, of every sequence
TOGETHER = (1, 8)  # sequences


def decode_cases(setting: Setting) -> list[Case]:
    return [Case(name, partial(_decode, setting, name)) for name in ("nano9b", "transformer control")]


def control(setting: Setting) -> ModelConfig:
    """Qwen2.5-7B's layers, as many as come nearest to nano9b's decoder in parameters."""
    model, goal = preset("qwen25_7b", setting), size_of(preset("nano9b", setting).decoder)
    few, more = (size_of(replace(model.decoder, layout="*-" * n)) for n in (1, 2))
    model.decoder = replace(model.decoder, layout="*-" * max(1, 1 + round((goal - few) / (more - few))))
    return model


def size_of(decoder: DecoderConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(decoder).parameters())


def _decode(setting: Setting, name: str) -> Iterator[Row]:
    cfg = (preset("nano9b", setting) if name == "nano9b" else control(setting)).decoder
    decoder = cast(Decoder, random_model(lambda: Decoder(cfg), setting.device))
    length, device = tokens(setting, CONTEXT), setting.device
    parameters = sum(p.numel() for p in decoder.parameters())
    ids = torch.randint(cfg.vocab_size, (length,), device=device)
    with torch.inference_mode():
        start = prefill(decoder, decoder.embed(ids), Bounds([length], device))
        for count in TOGETHER:
            state = start.state.select([0] * count)
            stored = state.num_bytes() / count
            ids = decoder.project(start.hidden).argmax(-1).expand(count)

            def step(ids: Tensor = ids, state=state, count: int = count) -> None:
                hidden = decoder(decoder.embed(ids), Bounds([1] * count, device), state=state).hidden
                decoder.project(hidden).argmax(-1)

            with Peak(device) as peak:
                taken = timed(step, device, seconds=5, most=max(STEPS // setting.divide, 4))
            row: Row = {"decoder": name, "parameters, 10^9": parameters / 1e9, "weights GB": weights_gb(decoder)}
            row |= {"tokens read": length, "sequences": count, "ms a step": taken.ms, "steps": taken.runs}
            row |= {"tokens/s": 1e3 * count / taken.ms, "state MB a sequence": stored / 1e6, "peak GB": peak.gb}
            yield row


PARTS = [
    Part(
        "d",
        "Prefill of long videos, nano9b with random weights",
        f"bfloat16; {BEFORE} and {BEHIND} text tokens before and behind the frames, 16 tokens a frame. Random "
        "embeddings stand in for frames: the tower has rows of its own, with random pixels. In pieces: "
        f"{PART_FRAMES} frames at a time. Kept: what must be, by the formula in `inference/prefill.py`. Logits "
        "after the last token: off those of the first way of the same prompt, relative to the largest. The "
        "transfers' gates are open (alpha 0.5). Torch forms of everything: only where runs are repeated.",
        260,
        {
            "TransV": "",
            "frames": ",d",
            "tokens": ",d",
            "prefill": "",
            "seconds": ",.3f",
            "runs": "d",
            "ms a frame": ".3f",
            "peak GB": ".2f",
            "above weights GB": ".2f",
            "kept GB": ".2f",
            "left by TransV": "",
            "logits off": ".1e",
            "same token": "",
        },
        prefill_cases,
    ),
    Part(
        "f",
        "Decode beside the transformer control",
        "bfloat16, random weights and ids. Control: the layers of Qwen2.5-7B, as many as come nearest in parameters. "
        "Sequences have the same past. A step: embedding, all blocks, head and the most likely token.",
        120,
        {
            "decoder": "",
            "parameters, 10^9": ".3f",
            "weights GB": ".2f",
            "tokens read": ",d",
            "sequences": "d",
            "ms a step": ".2f",
            "steps": "d",
            "tokens/s": ",.1f",
            "state MB a sequence": ",.1f",
            "peak GB": ".2f",
        },
        decode_cases,
    ),
]
