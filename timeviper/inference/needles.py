"""Needles in videos of many lengths, asked of one or several models; each answer is kept, so a map can grow.

A question is answered like any held-out one, its frames streamed. What was answered lies in RUN/needles/<digest of
weights and settings>/, by the bytes that were asked about: more lengths, videos or types of questions cost only what is
new, and what was stopped continues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import split

from timeviper.config import FramesConfig, Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.config.shape import tokens_per_frame
from timeviper.datamodules.build import load_index
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.needles.place import by_length, place_of
from timeviper.datamodules.shards.index import ShardIndex
from timeviper.errors import ConfigError, Problem, one_of
from timeviper.inference.eval_report import folder_of
from timeviper.inference.evaluate import answered
from timeviper.inference.held_out import BLIND, PURE_DROP, WHOLE, Evaluation, Variant
from timeviper.inference.journal import Entry, Journal, digest_of
from timeviper.inference.ranks import Ranks
from timeviper.kernels import dispatch
from timeviper.weights.export import check_export, find_export, load_export, pick_device, pick_dtype
from timeviper.weights.lineage import read_lineage

FOLDER = "needles"  # in a run folder
STAMP = 32  # tokens that a time in the prompt takes at most, with room to spare
TEXT = 4096  # and all other text, with the answer


@dataclass(frozen=True)
class Setting:
    """A way to let a model answer."""

    name: str
    """What people see."""
    overrides: tuple[str, ...] = ()
    variant: Variant = WHOLE


AS_TRAINED = Setting("as trained")
SETTINGS = ("drop", "none", "blind")


def settings(recipe: Recipe, also: Sequence[str], where: str | Path) -> list[Setting]:
    """As trained, then each of `also`: drop (what TransV drops is lost), none (it drops nothing), blind (grey frames),
    or overrides, such as "model.transv.stages.late.keep=0.5".

    ConfigError for anything else, and for what makes no difference to this model.
    """
    found, stages = [AS_TRAINED], recipe.model.transv.stages
    for words in also:
        if words == "blind":
            found.append(Setting("blind", variant=BLIND))
        elif words == "drop" and any(stage.has_weights for stage in stages.values()):
            found.append(Setting("pure drop", variant=PURE_DROP))
        elif words == "none" and any(stage.keep < 1 for stage in stages.values()):
            found.append(Setting("no compression", tuple(f"model.transv.stages.{name}.keep=1" for name in stages)))
        elif words in SETTINGS:
            what = "transfers nothing" if words == "drop" else "compresses nothing"
            raise ConfigError("needles", [Problem("--also", words, f"{where} {what} anyway: leave it out.")])
        elif words and all("=" in word for word in split(words)):
            found.append(Setting(words, tuple(split(words))))
        else:
            message = f'must be {one_of(SETTINGS)}, or settings such as "model.transv.stages.late.keep=0.5".'
            raise ConfigError("needles", [Problem("--also", words, message)])
    return found


@dataclass(frozen=True)
class Haystacks:
    """Needles on disk."""

    where: str
    shards: Mapping[int, list[ShardIndex]]
    """By the number of frames."""
    parts: int
    """Depths."""
    types: tuple[str, ...]
    """Of the questions that are asked."""

    def source(self, frames: int) -> Source:
        return Source(FOLDER, self.shards[frames], set(self.types))

    def rate(self, frames: int) -> float:
        """Frames a second of the model at which a video has so many."""
        return frames / self.shards[frames][0].samples[0].duration


def find_haystacks(
    where: str | Path, lengths: Sequence[int] | None, types: Sequence[str], count: int | None
) -> Haystacks:
    """Needles of these lengths (None: of all that are there), of each the first `count` videos.

    ValueError that says what there is if some are missing.
    """
    there = by_length(load_index(where), where, count)
    missing = sorted(set(lengths or []) - there.keys())
    if missing:
        raise ValueError(
            f"{where} has no needles in videos of {', '.join(f'{n:,}' for n in missing)} frames, only of "
            f"{', '.join(f'{n:,}' for n in there)}; name one of these, or make more with `timeviper shards needles`"
        )
    chosen = {frames: shards for frames, shards in there.items() if lengths is None or frames in lengths}
    place = place_of(next(iter(chosen.values()))[0].samples[0].key)
    assert place is not None
    return Haystacks(str(where), chosen, place.parts, tuple(types))


@dataclass(frozen=True)
class Asked:
    """What one model wrote about all needles under one setting."""

    run: str
    setting: Setting
    overrides: tuple[str, ...]
    """Of the whole command, those of the setting not among them."""
    checkpoint: str
    """EXPORT@STEP"""
    weights: str | None
    dtype: str
    notes: list[str]
    entries: dict[int, list[Entry]]
    """By the number of frames; in the order of the shards."""


def ask_needles(
    run: str | Path,
    haystacks: Haystacks,
    overrides: Sequence[str] = (),
    also: Sequence[str] = (),
    *,
    dtype: str | None = None,
    again: bool = False,
    quiet: bool = False,
) -> Iterator[Asked]:
    """All questions under each setting, one setting after the other.

    Raises FileNotFoundError without an export, ConfigError for overrides or settings that do not fit.
    """
    export, ranks, device = find_export(run), Ranks(), pick_device()
    check_export(export)
    if wrong := [word for word in overrides if word.startswith("data.frames.")]:
        message = "the needles say which frames are taken: so many as the length of each video, evenly spaced."
        raise ConfigError("needles", [Problem("override", word, message) for word in wrong])
    recipe = load_recipe(export / CONFIG, overrides, to_train=False)
    lineage = read_lineage(export)
    with ranks.together():
        for setting in settings(recipe, also, run):
            words, notes = [*overrides, *setting.overrides], list[str]()
            words += _room(load_recipe(export / CONFIG, words, to_train=False), words, haystacks, notes)
            model, loaded, tokenizer = load_export(export, words, device=device, dtype=dtype)
            dispatch.configure(**vars(loaded.model.kernel))
            computed = str(pick_dtype(loaded, device, dtype)).removeprefix("torch.")
            found: dict[int, list[Entry]] = {}
            for frames in haystacks.shards:
                if ranks.rank == 0 and not quiet:
                    print(f"{run}, {setting.name}: {frames:,} frames", file=sys.stderr, flush=True)
                shown = _showing(loaded, frames, haystacks.rate(frames))
                evaluation = Evaluation(model, shown, tokenizer, {FOLDER: haystacks.source(frames)})
                evaluation.variants = [setting.variant]
                digest = digest_of(export, shown, computed)
                journal = Journal(folder_of(export) / FOLDER, digest, ranks.rank, name=digest)
                entries = answered(evaluation, journal, ranks, again=again, quiet=quiet)
                by_key = {e.answered.key: e for e in entries if e.variant == setting.variant.name}
                found[frames] = [by_key[key] for key in evaluation.samples]
            yield Asked(
                run=str(run),
                setting=setting,
                overrides=tuple(overrides),
                checkpoint=f"{export}@{lineage['step']}",
                weights=lineage.get("weights"),
                dtype=computed,
                notes=notes,
                entries=found,
            )


def _showing(recipe: Recipe, frames: int, rate: float) -> Recipe:
    """The recipe that takes all frames of a length and nothing of its own data, so that these do not count."""
    wanted = FramesConfig(fps=rate, max_frames=frames)
    return replace(recipe, data=replace(recipe.data, frames=wanted, sources={}, val={}))


def _room(recipe: Recipe, words: Sequence[str], haystacks: Haystacks, notes: list[str]) -> list[str]:
    """A context that holds the longest video, where the model has no positions that could run out."""
    decoder = recipe.model.decoder
    stamps = STAMP if recipe.chat.time == "frames" else 0
    needed = max(haystacks.shards) * (tokens_per_frame(recipe.model) + stamps) + TEXT
    if (
        decoder.facts.rotary
        or needed <= decoder.max_tokens
        or any(w.startswith("model.decoder.max_tokens") for w in words)
    ):
        return []
    notes.append(
        f"the context is {needed:,} tokens here instead of {decoder.max_tokens:,}: this decoder has no positions, so "
        "nothing but memory bounds it"
    )
    return [f"model.decoder.max_tokens={needed}"]
