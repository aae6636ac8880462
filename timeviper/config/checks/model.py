"""What cannot work in the sizes of a model: towers, decoder layout, TransV stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from timeviper.config.checks.finding import Finding, out_of_range
from timeviper.config.model import (
    BLOCKS,
    FAMILY_FACTS,
    LEGEND,
    LORA_TARGETS,
    SELECTION_FACTS,
    TOWER_FACTS,
    DecoderConfig,
    LoraConfig,
    ModelConfig,
    TowerConfig,
    TransVConfig,
    TransVStage,
)
from timeviper.errors import ConfigError, Problem, did_you_mean


def check_decoder(cfg: DecoderConfig, transv: TransVConfig) -> None:
    """Raises ConfigError with everything that cannot be built, for a decoder that comes from no recipe."""
    model = ModelConfig(towers={}, decoder=cfg, transv=transv)
    problems = []
    for finding in model_problems(model):
        value: object = model
        for name in finding.key.split(".")[1:]:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        problems.append(Problem(finding.key, value, finding.message))
    if problems:
        raise ConfigError("the decoder cannot be built", problems)


def model_problems(model: ModelConfig) -> Iterator[Finding]:
    """Everything that cannot be built."""
    yield from out_of_range(model, "model")
    yield from model_disagreements(model)


def model_disagreements(model: ModelConfig) -> Iterator[Finding]:
    """What does not fit together; of a tower or decoder only where its numbers are in range."""
    for name, tower in model.towers.items():
        yield from _tower(f"model.towers.{name}", tower)
    yield from _decoder(model.decoder)
    yield from _transv(model)
    yield from _lora(model.lora)


def _no_such(key: str, table: Mapping[str, object]) -> Finding:
    """A name that a recipe cannot have got past its type, but a config made in Python can."""
    return Finding(key, f"must be one of {', '.join(table)}.")


def _tower(key: str, tower: TowerConfig) -> Iterator[Finding]:
    if any(out_of_range(tower)):
        return
    if tower.family not in TOWER_FACTS:
        yield _no_such(f"{key}.family", TOWER_FACTS)
        return
    if tower.registers < 0 or (tower.registers and not tower.facts.registers):
        able = " and ".join(family for family, facts in TOWER_FACTS.items() if facts.registers)
        yield Finding(f"{key}.registers", f"must be 0 for {tower.family}: only {able} has register tokens.")
    if tower.image_size < tower.patch_size:
        yield Finding(f"{key}.patch_size", f"is larger than the image of {tower.image_size} pixels.")
        return
    # SigLIP so400m has 384 = 27 x 14 + 6 pixels: its convolution leaves the rest out, as it was trained.
    if not tower.facts.crops and tower.image_size % tower.patch_size:
        lower = tower.image_size // tower.patch_size * tower.patch_size
        message = f"must be a multiple of patch_size = {tower.patch_size}: {lower} or {lower + tower.patch_size}."
        yield Finding(f"{key}.image_size", message)
    if tower.facts.halves and tower.patch_size & (tower.patch_size - 1):
        yield Finding(
            f"{key}.patch_size", f"must be a power of two for {tower.family}: its stem halves the image step by step."
        )
    if tower.width % tower.heads:
        yield Finding(f"{key}.heads", f"must divide width = {tower.width}.")
    if tower.tokens > tower.patches:
        yield Finding(
            f"{key}.tokens", f"is more than the {tower.patches} patches of a frame; merging cannot add tokens."
        )
    if not -tower.layers <= tower.feature_layer <= -1:
        message = f"counts from the end: -1 the last block, -{tower.layers} the first."
        yield Finding(f"{key}.feature_layer", message)


def _decoder(decoder: DecoderConfig) -> Iterator[Finding]:
    key, layout = "model.decoder", decoder.layout
    if not layout:
        yield Finding(f"{key}.layout", f"is empty: one letter a block ({LEGEND}).")
    if unknown := sorted(set(layout) - set(BLOCKS)):
        yield Finding(f"{key}.layout", f"has {' '.join(map(repr, unknown))}; the letters are {LEGEND}.")
    if layout and "*" not in layout:
        yield Finding(f"{key}.layout", "has no attention block (*): without one nothing is recalled exactly.")
    if decoder.family not in FAMILY_FACTS:
        yield _no_such(f"{key}.family", FAMILY_FACTS)
        return
    facts = decoder.facts
    if facts.repeats and layout != facts.repeats * (len(layout) // len(facts.repeats)):
        titles = ", ".join(BLOCKS[letter].title for letter in facts.repeats)
        yield Finding(f"{key}.layout", f"must repeat {facts.repeats} ({titles}) for {decoder.family}.")
    if any(out_of_range(decoder)):
        return
    if decoder.heads % decoder.kv_heads:
        yield Finding(f"{key}.kv_heads", f"must divide heads = {decoder.heads}: each serves a group of them.")
    if decoder.head_dim % 2 and facts.rotary:
        yield Finding(f"{key}.head_dim", "must be even: the rotary embedding turns pairs.")
    if "M" in layout and decoder.ssm_heads % decoder.ssm_groups:
        message = f"must divide ssm_heads = {decoder.ssm_heads}: the heads of a group share B and C."
        yield Finding(f"{key}.ssm_groups", message)


def _transv(model: ModelConfig) -> Iterator[Finding]:
    layout = model.decoder.layout
    stages = {f"model.transv.stages.{name}": stage for name, stage in model.transv.stages.items()}
    for key, stage in stages.items():
        if not 0 <= stage.layer < len(layout):
            yield Finding(f"{key}.layer", f"must be a block of the layout: 0 to {len(layout) - 1}.")
        elif stage.select not in SELECTION_FACTS:
            yield _no_such(f"{key}.select", SELECTION_FACTS)
        elif stage.facts.block not in ("", layout[stage.layer]):
            yield Finding(f"{key}.layer", _needs_block(stage, layout))
    for (_, a), (key, b) in pairwise(stages.items()):
        if b.layer <= a.layer:
            message = f"stages stand in order of strictly rising layer, and the one before runs at {a.layer}."
            yield Finding(f"{key}.layer", message)
        if b.keep > a.keep:
            message = (
                f"never rises from stage to stage, and the one before keeps {a.keep:g} "
                "(keep counts from the original tokens, not from those that are left)."
            )
            yield Finding(f"{key}.keep", message)


def _needs_block(stage: TransVStage, layout: str) -> str:
    needed = BLOCKS[stage.facts.block].title
    blocks = ", ".join(str(i) for i, letter in enumerate(layout) if letter == stage.facts.block)
    block = BLOCKS.get(layout[stage.layer])
    kind = f"{block.article} {block.title}" if block else f"no {needed}"
    return (
        f"select = {stage.select} ranks with the maps of its block, but block {stage.layer} is {kind} block. "
        f"{needed[0].upper()}{needed[1:]} blocks: {blocks or 'none in this layout'}. Or use select = uniform."
    )


def _lora(lora: LoraConfig) -> Iterator[Finding]:
    if lora.rank and not lora.targets:
        yield Finding("model.lora.targets", "is empty: name what gets adapters, as in [attention, mamba, mlp].")
    known = list(dict.fromkeys((*(target.partition(".")[0] for target in LORA_TARGETS), *LORA_TARGETS)))
    for target in lora.targets:
        if target not in known:
            yield Finding(
                "model.lora.targets",
                f"has no target {target}; targets: {', '.join(known)}.{did_you_mean(target, known)}",
            )
