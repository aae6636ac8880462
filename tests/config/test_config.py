"""Settings: every field is a documented field, and every combination that cannot work is named."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator

import pytest

from timeviper.config import ParallelConfig, Recipe, SourceConfig, TowerConfig, TransVStage
from timeviper.config import fields as schema
from timeviper.config import settings as config
from timeviper.config.callbacks import OwnCallback, SamplesConfig, TransferConfig
from timeviper.config.checks import recipe as validate
from timeviper.config.checks.model import model_problems
from timeviper.config.load import load_recipe
from timeviper.config.presets import PRESETS

STAGE2 = load_recipe("recipes/tiny/stage2_instruct.yaml")


def sections() -> Iterator[type]:
    return (c for _, c in inspect.getmembers(config, dataclasses.is_dataclass) if isinstance(c, type))


def findings(change: Callable[[Recipe], object]) -> list[str]:
    """`key: message` of everything wrong with the tiny stage 2 after a change."""
    recipe = copy.deepcopy(STAGE2)
    change(recipe)
    return [f"{finding.key}: {finding.message}" for finding in validate.problems(recipe)]


def setter(key: str, value: object) -> Callable[[Recipe], None]:
    def change(recipe: Recipe) -> None:
        *path, last = key.split(".")
        section = recipe
        for name in path:
            section = section[name] if isinstance(section, dict) else getattr(section, name)
        if isinstance(section, dict):
            section[last] = value
        else:
            setattr(section, last, value)

    return change


def test_every_setting_is_an_annotated_field() -> None:
    tree = ast.parse(inspect.getsource(config))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            plain = [ast.unparse(item) for item in node.body if isinstance(item, ast.Assign)]
            assert not plain, f"{node.name}: {plain} has no annotation, so it is no field"


def test_every_setting_is_documented() -> None:
    undocumented = [
        key for key in schema.leaf_keys(Recipe) if not schema.doc(Recipe, key.replace("<name>", "any")).strip()
    ]
    assert not undocumented


def test_one_string_documents_the_fields_above_it() -> None:
    docs = schema.field_docs(config.OptimConfig)
    assert docs["beta1"] == docs["beta2"] != docs["lr"]


def test_the_default_of_every_section_can_be_built() -> None:
    assert all(dataclasses.is_dataclass(section()) for section in sections())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    model = PRESETS[name]()
    assert model.preset == name
    assert not list(model_problems(model))


@pytest.mark.parametrize(
    ("name", "mamba", "mlp", "attention"),
    [
        ("tiny", 4, 4, 2),
        ("nano9b", 27, 25, 4),
        ("nano12b", 28, 28, 6),
        ("nemotron_h_8b", 24, 24, 4),
        ("qwen25_7b", 0, 28, 28),
        ("smollm2_135m", 0, 30, 30),
    ],
)
def test_block_counts_of_presets(name: str, mamba: int, mlp: int, attention: int) -> None:
    layout = PRESETS[name]().decoder.layout
    assert [layout.count(letter) for letter in "M-*"] == [mamba, mlp, attention]


def test_published_attention_blocks() -> None:
    layouts = {name: PRESETS[name]().decoder.layout for name in ("nano9b", "nano12b", "nemotron_h_8b")}
    at = {name: [i for i, letter in enumerate(layout) if letter == "*"] for name, layout in layouts.items()}
    assert at == {
        "nano9b": [14, 21, 30, 39],
        "nano12b": [7, 16, 25, 34, 43, 52],
        "nemotron_h_8b": [7, 18, 29, 40],
    }


# Settings that disagree with another one, which is the one that is named.
FOUND_ELSEWHERE = (
    "model.towers.main.layers",
    "model.decoder.family",
    "model.decoder.max_tokens",
    "model.transv.stages.early.layer",
    "data.frames.min_frames",
    "data.tokens_per_pack",
    "train.objective",
)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("name", "", "run folder"),
        ("size", "a/b", "folder"),
        ("model.towers.main.image_size", 30, "24 or 32"),
        ("model.towers.main.patch_size", 64, "larger than the image"),
        ("model.towers.main.tokens", 17, "16 patches"),
        ("model.towers.main.heads", 5, "divide width"),
        ("model.towers.main.feature_layer", 0, "-1 the last"),
        ("model.towers.main.registers", 4, "only dinov2"),
        ("model.towers.main.layers", 0, "1 or more"),
        ("model.decoder.layout", "", "M Mamba-2"),
        ("model.decoder.layout", "M-X*", "'X'"),
        ("model.decoder.family", "llama", "repeat *-"),
        ("model.decoder.kv_heads", 3, "divide heads"),
        ("model.decoder.ssm_groups", 3, "divide ssm_heads"),
        ("model.decoder.vocab_size", 0, "1 or more"),
        ("model.decoder.norm_eps", 0.0, "above 0"),
        ("model.decoder.max_tokens", 8, "max_tokens = 8"),
        ("model.transv.stages.early.keep", 0.0, "above 0"),
        ("model.transv.stages.early.keep", 1.5, "at most 1"),
        ("model.transv.stages.late.keep", 0.6, "never rises"),
        ("model.transv.stages.early.layer", 8, "strictly rising"),
        ("model.transv.stages.late.layer", 10, "0 to 9"),
        ("model.transv.stages.late.layer", 9, "Attention blocks: 3, 8"),
        ("data.sources", {}, "at least one"),
        ("data.sources.videos.shards", "", "folder of .tar"),
        ("data.sources.videos.weight", -1.0, "0 or more"),
        ("data.sources.videos.weight", float("nan"), "0 or more"),
        ("data.frames.min_frames", 0, "1 or more"),
        ("data.frames.min_frames", 1000, "at least min_frames"),
        ("data.frames.fps", 0.0, "above 0"),
        ("data.frames.max_frames", 100_000, "data.tokens_per_pack"),
        ("data.tokens_per_pack", 0, "1 or more"),
        ("data.max_skipped", 2.0, "from 0 to 1"),
        ("data.workers", -1, "0 or more"),
        ("train.trainable", ["decodr"], "Did you mean decoder?"),
        ("train.trainable", ["decoder", "decoder"], "twice"),
        ("train.trainable", [], "nothing to train"),
        ("train.objective", "tags", "cannot name transv"),
        ("train.steps", 0, "1 or more"),
        ("train.validate_every", -1, "or more"),
        ("optim.lr", 0.0, "above 0"),
        ("optim.lr", float("inf"), "above 0"),
        ("optim.lrs.head", 1e-3, "no part"),
        ("optim.lrs.transv", -1.0, "above 0"),
        ("optim.weight_decay", -0.1, "0 or more"),
        ("optim.warmup", 1.0, "below 1"),
        ("optim.final_lr", 1.1, "from 0 to 1"),
        ("optim.beta2", 1.0, "below 1"),
        ("optim.clip", -1.0, "no clipping"),
        ("chat.frames_per_time", 0, "1 or more"),
        ("parallel.replicas", 0, "1 or more"),
        ("eval.batch", 0, "1 or more"),
        ("log.every", 0, "1 or more"),
        ("callbacks.throughput.peak_tflops", -1.0, "above 0"),
        ("callbacks.memory.every", 0, "1 or more"),
        ("callbacks.transfer.samples", 0, "1 or more"),
        ("callbacks.samples.max_new_tokens", 0, "1 or more"),
        ("callbacks.own", {"ema": OwnCallback("ema")}, "module:Class"),
        ("train.phases.late", config.PhaseConfig(start=100_000), "a step of the stage"),
        ("train.phases.late", config.PhaseConfig(max_frames=0), "min_frames"),
        ("train.phases.late", config.PhaseConfig(fps=0.0), "above 0"),
        ("train.phases.late", config.PhaseConfig(weights={"video": 1}), "Did you mean videos?"),
        ("train.phases.late", config.PhaseConfig(weights={"videos": -1}), "0 or more"),
        (
            "train.phases.late",
            config.PhaseConfig(weights={name: 0 for name in ("videos", "questions", "motion", "clips", "images")}),
            "pauses every source",
        ),
    ],
)
def test_what_cannot_work_is_named(key: str, value: object, says: str) -> None:
    found = findings(setter(key, value))
    assert any(says in finding for finding in found), found
    if key not in FOUND_ELSEWHERE:
        assert any(finding.startswith(f"{key}") for finding in found), found


def test_the_recipe_itself_has_no_problem() -> None:
    assert findings(lambda recipe: None) == []


def test_sources_that_all_weigh_nothing() -> None:
    def change(recipe: Recipe) -> None:
        recipe.data.sources = {"a": SourceConfig("x", weight=0), "b": SourceConfig("y", weight=0)}

    assert any("every weight is 0" in finding for finding in findings(change))


def test_phases_start_in_rising_order() -> None:
    def change(recipe: Recipe) -> None:
        recipe.train.phases = {"a": config.PhaseConfig(5), "b": config.PhaseConfig(5)}

    assert any("train.phases.b.start" in finding and "rising" in finding for finding in findings(change))


def test_siglip_may_leave_pixels_over_and_vit_may_not() -> None:
    def tower(family: str, image: int, patch: int) -> list[str]:
        model = PRESETS["nano9b"]()
        model.towers = {"main": TowerConfig(family=family, image_size=image, patch_size=patch)}  # type: ignore[arg-type]
        return [finding.message for finding in model_problems(model)]

    assert tower("siglip", 384, 14) == []
    assert "378 or 392" in tower("dinov2", 384, 14)[0]
    assert "power of two" in tower("vit", 384, 12)[0]


def test_the_share_of_tokens_is_the_one_that_packs_are_filled_by() -> None:
    from timeviper.config.shape import kept_share

    model = PRESETS["nano9b"]()
    model.transv.stages = {"early": TransVStage(7, 0.5), "late": TransVStage(39, 0.1, "attention")}
    share = kept_share(model.transv, len(model.decoder.layout))
    assert share == pytest.approx((7 + 0.5 * 32 + 0.1 * 17) / 56)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.trainable", ["projector", "decoder"], "optim.lrs.transv: has no effect"),
        ("model.transv.stages", {}, "transv has no parameters"),
        ("model.transv.stages.early.keep", 1.0, "does nothing"),
        ("train.validate_every", 10_000, "at the end only"),
        ("data.val", {}, "nothing to evaluate"),
    ],
)
def test_settings_without_effect_warn(key: str, value: object, says: str) -> None:
    recipe = copy.deepcopy(STAGE2)
    setter(key, value)(recipe)
    assert any(says in f"{finding.key}: {finding.message}" for finding in validate.warnings(recipe))


def test_a_callback_that_a_person_set_and_that_has_nothing_to_do_warns() -> None:
    recipe = copy.deepcopy(STAGE2)
    recipe.model.transv.stages, recipe.data.val = {}, {}
    assert not any(f.key.startswith("callbacks") for f in validate.warnings(recipe))
    recipe.callbacks.transfer, recipe.callbacks.samples = TransferConfig(every=5), SamplesConfig(samples=1)
    keys = [f.key for f in validate.warnings(recipe)]
    assert {"callbacks.transfer", "callbacks.samples"} <= set(keys)


def test_pieces_without_checkpointing_warn() -> None:
    recipe = Recipe(parallel=ParallelConfig(tokens_per_piece=100))
    assert any(finding.key == "parallel.tokens_per_piece" for finding in validate.warnings(recipe))
    recipe.parallel.activation_checkpointing = "mamba"
    assert not any(finding.key == "parallel.tokens_per_piece" for finding in validate.warnings(recipe))


def test_a_group_size_without_times_warns() -> None:
    recipe = copy.deepcopy(STAGE2)
    recipe.chat.time, recipe.chat.frames_per_time = "sentence", 4
    assert any("has no effect with chat.time = sentence" in finding.message for finding in validate.warnings(recipe))
