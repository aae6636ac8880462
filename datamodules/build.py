"""What a recipe says of data, made: its sources with their indexes, the form of its packs, their costs, the plan."""

from __future__ import annotations

from collections.abc import Collection
from glob import glob
from pathlib import Path

from timeviper.config import ModelConfig, Recipe, SourceConfig
from timeviper.config.curriculum import ramps, transv_at
from timeviper.config.shape import PackShape, kept_share, tokens_per_frame
from timeviper.datamodules.chat import estimate_text, estimate_texts
from timeviper.datamodules.cost import CostModel
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.reader import PackFormat
from timeviper.datamodules.remote.listing import load_remote
from timeviper.datamodules.remote.patience import PATIENCE
from timeviper.datamodules.remote.storage import is_remote
from timeviper.datamodules.shards.column_join import join
from timeviper.datamodules.shards.columns import Columns
from timeviper.datamodules.shards.index import load_folder
from timeviper.model.flops import model_flops
from timeviper.tokenizer import Tokenizer


def pack_format(recipe: Recipe) -> PackFormat:
    """How this recipe shows samples to its model."""
    guided = any(stage.facts.by_question for stage in recipe.model.transv.stages.values())
    return PackFormat(
        chat=recipe.chat,
        image_size=max(tower.image_size for tower in recipe.model.towers.values()),
        tokens_per_frame=tokens_per_frame(recipe.model),
        max_tokens=recipe.model.decoder.max_tokens,
        supervise="last" if guided else "all",
        split=recipe.data.turns == "split",
    )


def cost_model(recipe: Recipe, tokenizer: Tokenizer) -> CostModel:
    form = pack_format(recipe)
    transv, phases, depth = recipe.model.transv, recipe.train.phases, len(recipe.model.decoder.layout)
    return CostModel(
        tokens_per_frame=form.tokens_per_frame,
        vision_share=kept_share(transv, depth),
        frame_work=frame_work(recipe.model, recipe.train.trainable, recipe.train.objective),
        estimate=lambda size, frames, turns: estimate_text(tokenizer, size, frames, recipe.chat, turns),
        estimates=lambda size, frames, turns: estimate_texts(tokenizer, size, frames, recipe.chat, turns),
        split=form.split,
        share_at=(lambda step: kept_share(transv_at(step, transv, phases), depth)) if ramps(phases) else None,
    )


def load_sources(
    configs: dict[str, SourceConfig], cache: str | Path = "", patience: float = PATIENCE
) -> dict[str, Source]:
    """Read the shard indexes of all sources. cache: as `data.cache`; a store that is away is waited for `patience`
    seconds.

    Raises ValueError that names the source and what is missing.
    """
    sources = {}
    for name, config in configs.items():
        types = {t.strip() for t in config.types.split(",") if t.strip()}
        try:
            dataset = class_dataset(config)
            index = [dataset.index()] if dataset else load_index(config.shards, cache, patience)
            sources[name] = Source(name, index, types or None)
        except ValueError as error:
            raise ValueError(f"data source {name!r}: {error}") from error
    return sources


def class_dataset(config: SourceConfig) -> ClassDataset | None:
    return ClassDataset(config.dataset, config.options) if config.dataset else None


def class_datasets(configs: dict[str, SourceConfig]) -> dict[str, ClassDataset]:
    """The sources that are Python classes, by name."""
    return {name: made for name, config in configs.items() if (made := class_dataset(config))}


def build_plan(recipe: Recipe, tokenizer: Tokenizer, states: PlanFiles | None = None) -> Plan:
    """The whole data order of a recipe. states: the files that let it begin near any step."""
    return Plan(
        load_sources(recipe.data.sources, recipe.data.cache, recipe.data.patience),
        recipe.data,
        recipe.train.phases,
        cost_model(recipe, tokenizer),
        recipe.seed,
        states=states,
    )


# A sample of everyday size: what grows with the square of its length (attention, a few percent) is counted as here.
FRAMES, TEXT = 64, 256


def frame_work(model: ModelConfig, trainable: Collection[str], objective: str = "answer") -> float:
    """Model FLOPs (forward and backward, tower included) that one frame adds, in text tokens that add as many.

    With the objective "tags" text costs nothing; then a frame counts as its tokens.
    """

    def total(frames: int, text: int) -> float:
        parts = model_flops(model, PackShape((frames,), (text,), 1), trainable, objective)
        return sum(part.total for part in parts.values())

    a_token = (total(FRAMES, 2 * TEXT) - total(FRAMES, TEXT)) / TEXT
    a_frame = (total(2 * FRAMES, TEXT) - total(FRAMES, TEXT)) / FRAMES
    return a_frame / a_token if a_token else float(tokens_per_frame(model))


def load_index(where: str | Path, cache: str | Path = "", patience: float = PATIENCE) -> Columns:
    """All shards of a folder, of a glob of tars, or behind a URL (`load_remote`), in order of their names.

    cache: as `data.cache`, where what is large is kept once for all ranks of a node. ValueError for people.
    """
    if is_remote(where):
        return load_remote(str(where), cache, patience)
    path = Path(where)
    if path.is_dir():
        if found := load_folder(path, cache=cache):
            return found
    else:
        folders: dict[Path, list[str]] = {}
        for tar in map(Path, glob(str(where))):
            if tar.suffix == ".tar":
                folders.setdefault(tar.parent, []).append(tar.name)
        if folders:
            return join([load_folder(folder, names, cache) for folder, names in sorted(folders.items())])
    if path.is_dir():
        state = "has no .tar shards"
    elif path.exists():
        state = "is not a .tar"
    else:
        state = "does not exist"
    raise ValueError(f"no shards: {where} {state}; give a folder of shards or a glob such as 'data/*.tar'")
