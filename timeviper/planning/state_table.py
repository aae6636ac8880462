"""How large the states of watched videos are, from the shapes of a model without memory, and how many hours of video
a GPU holds beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from timeviper.config import Recipe
from timeviper.config.model import TransVConfig
from timeviper.console import console
from timeviper.model.boundary import question_cut, schedule, shape_of
from timeviper.model.decoder import Decoder
from timeviper.model.state_size import TIME, boundary_bytes, state_bytes
from timeviper.model.viper import TimeViper
from timeviper.planning.hardware import GPUS, Assumptions, Gpu
from timeviper.planning.tables import print_figures, say
from timeviper.weights.export import meta_model

LENGTHS = (1024, 3600, 4096, 10240)  # frames
HOUR = 3600
QUESTION = 1 << 30  # bytes that questions under way may take beside the states


@dataclass(frozen=True)
class StateRow:
    """A video of so many frames; bytes throughout."""

    frames: int
    vision: int
    keys_whole: int
    """Keys and values of all attention blocks without TransV."""
    keys: int
    decode_whole: int
    """All that writing an answer needs, without TransV: Mamba-2 states, keys and values."""
    decode: int
    state: int
    """What any later question shares."""
    features: int


@dataclass(frozen=True)
class StatePlan:
    """What a recipe's states take."""

    recipe: str
    dtype: str
    asked_from: int
    """The block from which on a question reaches the video's tokens; the number of blocks: none."""
    blocks: int
    weights: int
    rows: list[StateRow]


def plan_states(recipe: Recipe, lengths: Sequence[int] = LENGTHS, dtype: str | None = None) -> StatePlan:
    """From meta shapes; dtype: float32 or bfloat16 (None: `parallel.param_dtype`)."""
    model, name = meta_model(recipe), dtype or recipe.parallel.param_dtype
    assert isinstance(model, TimeViper)
    kind: torch.dtype = getattr(torch, name)
    segments = model.decoder.segments
    cut = question_cut(segments, schedule(segments, [1 << 20]))
    blocks = len(recipe.model.decoder.layout)
    asked_from = segments[cut].blocks.start if cut < len(segments) else blocks
    weights = sum(p.numel() for p in model.parameters()) * kind.itemsize
    rows = [_row(recipe, model.decoder, frames, kind) for frames in lengths]
    return StatePlan(recipe.name, name, asked_from, blocks, weights, rows)


def _row(recipe: Recipe, decoder: Decoder, frames: int, dtype: torch.dtype) -> StateRow:
    cfg, e = decoder.cfg, dtype.itemsize
    vision = frames * sum(tower.tokens for tower in recipe.model.towers.values())
    empty = decoder.empty_state(1, "meta", dtype)
    state = shape_of(empty, cfg, decoder.transv_cfg, vision, 0)
    whole = boundary_bytes(cfg, TransVConfig(), vision, 0, e)
    left = [n for (n,) in schedule(decoder.segments, [vision])]
    pair = 2 * cfg.kv_heads * cfg.head_dim * e
    keys = sum(n * pair * cfg.layout[s.blocks.start : s.blocks.stop].count("*") for n, s in zip(left, decoder.segments))
    features = state_bytes(recipe.model, "features", frames, 0, e) - frames * TIME
    return StateRow(
        frames=frames,
        vision=vision,
        keys_whole=whole["keys"],
        keys=keys,
        decode_whole=whole["keys"] + whole["mamba"],
        decode=keys + whole["mamba"],
        state=state.num_bytes(),
        features=features,
    )


def hours_held(recipe: Recipe, plan: StatePlan, gpu: Gpu) -> dict[str, float]:
    """Hours of video at the recipe's frames a second whose states, of an hour each, lie in a GPU's memory beside the
    weights, the plan's reserve and a gigabyte for questions under way: of states, states without TransV, features."""
    assume, e = Assumptions(), getattr(torch, plan.dtype).itemsize
    room = (gpu.memory_gb - assume.reserve_gb) / (1 + assume.fragmentation) * 1e9 - plan.weights - QUESTION
    frames, without = round(HOUR * recipe.data.frames.fps), replace(recipe.model, transv=TransVConfig())
    kinds = {"state": (recipe.model, "state"), "no_transv": (without, "state"), "features": (recipe.model, "features")}
    return {kind: max(room, 0.0) / state_bytes(cfg, tier, frames, 0, e) for kind, (cfg, tier) in kinds.items()}


def print_state_plan(recipe: Recipe, as_json: bool, lengths: Sequence[int] = LENGTHS) -> None:
    """The tables of `timeviper prefill --plan`."""
    plan = plan_states(recipe, lengths)
    fps = recipe.data.frames.fps
    hours = {name: hours_held(recipe, plan, gpu) for name, gpu in GPUS.items()}
    if as_json:
        print(json.dumps({**asdict(plan), "fps": fps, "hours": hours}, indent=2))
        return
    out = console()
    where = "the end" if plan.asked_from == plan.blocks else f"block {plan.asked_from} of {plan.blocks}"
    say(out, f"{plan.recipe} in {plan.dtype}: what a watched video takes, in MB; a question joins it at {where}", "")
    columns = ["frames", "vision tokens", "keys, no TransV", "keys", "decode, no TransV", "decode", "state", "features"]
    rows = [
        [f"{r.frames:,}", f"{r.vision:,}", *(f"{v / 1e6:,.1f}" for v in list(vars(r).values())[2:])] for r in plan.rows
    ]
    print_figures(out, columns, rows)
    weights = f"{plan.weights / 1e9:,.1f} GB of weights"
    say(out, "", f"Hours of video (frames a second: {fps:g}) that a GPU holds beside {weights}:", "")
    rows = [
        [
            gpu.name if f"{gpu.memory_gb:g} GB" in gpu.name else f"{gpu.name}, {gpu.memory_gb:g} GB",
            *(f"{h:,.0f}" for h in hours[name].values()),
        ]
        for name, gpu in GPUS.items()
    ]
    print_figures(out, ["GPU", "as states", "no TransV", "as features"], rows)
