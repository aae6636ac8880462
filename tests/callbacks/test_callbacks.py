"""Two ranks with every optional callback at work, and two without any: the same training, and true figures."""

from __future__ import annotations

import csv
import io
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from jobs import losses, run, weights, write_recipe

from timeviper.callbacks.build import optional_callbacks, own_loggers
from timeviper.callbacks.guard import Guard
from timeviper.callbacks.held_out import fixed_plans, read_share
from timeviper.callbacks.memory_meter import HELD
from timeviper.callbacks.samples import _cell
from timeviper.callbacks.throughput import Throughput
from timeviper.config import PARTS, Recipe
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape, segment_shapes
from timeviper.datamodules.build import build_plan, class_datasets, pack_format
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.reader import PackReader
from timeviper.errors import ConfigError
from timeviper.inference.held_out import WHOLE, Evaluation
from timeviper.model.flops import model_flops, total
from timeviper.planning.hardware import GPUS, gpu_of
from timeviper.planning.parameters import sharded_parameters
from timeviper.tokenizer import Tokenizer
from timeviper.training.module import ViperModule
from timeviper.weights.export import load_export, meta_model

WORLD, STEPS, PEAK = 2, 6, 0.5
HELD_OUT = [
    "data.val.pictures.dataset=jobs:Pictures",
    "data.val.pictures.options={count: 5}",
    "train.validate_every=3",
    f"train.steps={STEPS}",
    "model.lora={rank: 2, dropout: 0.5, targets: [mlp]}",
]
ALL_OFF = [f"callbacks.{name}=null" for name in ("throughput", "memory", "transfer", "samples")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`watched` with everything as often as it can be, `plain` with nothing."""
    folder = tmp_path_factory.mktemp("callbacks")
    recipe = str(write_recipe(folder))
    often = [
        "callbacks.memory.every=2",
        "callbacks.transfer={every: 1, samples: 3}",
        "callbacks.samples={samples: 3, frames: 4, max_new_tokens: 5}",
        f"callbacks.throughput.peak_tflops={PEAK}",
        "callbacks.own.note.callback=own_callback:Note",
        f"callbacks.own.note.options={{file: {folder / 'note'}, word: seen}}",
        "log.tensorboard=true",
        "log.loggers.mine.logger=own_callback:Lines",
        f"log.loggers.mine.options={{file: {folder / 'lines'}}}",
    ]
    run(folder, WORLD, "train", recipe, f"out={folder / 'watched'}", *HELD_OUT, *often)
    job = run(folder, WORLD, "train", recipe, f"out={folder / 'plain'}", *HELD_OUT, *ALL_OFF)
    assert "tok/s" not in job.said()
    return folder


@pytest.fixture(scope="module")
def recipe(runs: Path) -> Recipe:
    return load_recipe(runs / "watched" / "config.yaml")


def logged(run: Path, prefix: str) -> dict[int, dict[str, float]]:
    """Step -> what was logged under a prefix."""
    found: dict[int, dict[str, float]] = {}
    for row in csv.DictReader((run / "logs/from-step-0/metrics.csv").open()):
        figures = {k.removeprefix(prefix): float(v) for k, v in row.items() if v and k.startswith(prefix)}
        if figures:
            found.setdefault(int(row["step"]), {}).update(figures)
    return found


def test_training_is_the_same_to_the_last_bit_with_and_without_them(runs: Path) -> None:
    watched, plain = weights(runs / "watched"), weights(runs / "plain")
    assert watched.keys() == plain.keys()
    assert all(torch.equal(watched[k], plain[k]) for k in plain)
    assert losses(runs / "watched") == losses(runs / "plain")
    assert len(losses(runs / "plain")) == STEPS
    for run_, expected in ((runs / "watched", True), (runs / "plain", False)):
        for prefix in ("speed/", "memory_gb/", "transv/"):
            assert bool(logged(run_, prefix)) == expected
    assert not (runs / "plain/logs/samples").exists()


def test_flops_are_those_of_the_packs_that_all_ranks_read(runs: Path, recipe: Recipe) -> None:
    tokenizer = Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(recipe), class_datasets(recipe.data.sources))
    speed = logged(runs / "watched", "speed/")
    assert len(speed) == STEPS
    for plan, figures in zip(islice(build_plan(recipe, tokenizer).steps(), STEPS), speed.values()):
        shapes = [PackShape.of(pack) for pack in reader[plan].packs]
        flops = sum(total(model_flops(recipe.model, s, recipe.train.trainable)).total for s in shapes)
        seconds = figures["step_s"]
        assert figures["tflops_per_gpu"] * 1e12 * WORLD * seconds == pytest.approx(flops, rel=1e-6)
        assert figures["mfu"] == pytest.approx(figures["tflops_per_gpu"] / PEAK, rel=1e-6)
        assert figures["frames_per_s"] * seconds == pytest.approx(sum(s.num_frames for s in shapes), rel=1e-6)
        left = sum(segment_shapes(recipe.model, s)[-1].num_tokens for s in shapes)
        assert figures["tokens_left_per_s"] * seconds == pytest.approx(left, rel=1e-6)
        assert figures["tokens_per_s"] > figures["tokens_left_per_s"]


def test_what_is_paused_is_neither_training_nor_waiting(recipe: Recipe) -> None:
    speed = Throughput(recipe)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    speed.on_train_start(trainer, ViperModule(recipe, [], Guard(recipe, Path(), frozenset(), "")))
    began, ended = speed._began, speed._ended
    with speed.pause():
        time.sleep(0.05)
    assert speed._began - began == pytest.approx(speed._ended - ended)
    assert speed._ended - ended >= 0.05


def test_the_peak_is_known_for_the_gpus_of_the_table_and_no_other() -> None:
    assert gpu_of("NVIDIA H200") is GPUS["h200"]
    assert gpu_of("NVIDIA H100 PCIe") is None  # other clocks than the H100 of the table


def test_memory_is_that_of_the_largest_shard(runs: Path, recipe: Recipe) -> None:
    units = sharded_parameters(meta_model(recipe), recipe.parallel)
    found = logged(runs / "watched", "memory_gb/")
    assert sorted(found) == [1, 2, 4, 6]
    shard = sum(u.shard_bytes(WORLD) for u in units)
    learning = 4 * sum(u.shard_elements(WORLD) for u in units)
    counters = 4 * sum(sum(u.trained) for u in units)  # AdamW's step, a float32 for each parameter
    for figures in found.values():
        sums = {what: 1e9 * sum(figures.get(f"{what}/{part}", 0) for part in PARTS) for what in HELD}
        assert sums["parameters"] == pytest.approx(shard)
        assert sums["gradients"] == pytest.approx(learning)
        assert sums["optimizer"] == pytest.approx(2 * learning + counters)
        assert figures["gradients/tower"] == 0 < figures["gradients/transv"]
        assert figures["peak"] > figures["rest"] > 0
        assert 0 < figures["planned"] < figures["peak"]


def test_transv_is_metered_at_every_step(runs: Path) -> None:
    found = logged(runs / "watched", "transv/")
    assert sorted(found) == list(range(1, STEPS + 1))
    gates = [figures["gate/late"] for figures in found.values()]
    assert 0 not in gates
    assert len(set(gates)) == STEPS
    for figures in found.values():
        assert 0 < figures["moved/late"] < figures["vision_attention/late"] < 1
        assert 0 < figures["entropy/late"] <= 1
        assert figures["kl"] > 0


def test_answers_are_those_of_the_export_and_pictures_those_of_the_samples(runs: Path) -> None:
    model, recipe, tokenizer = load_export(runs / "watched/export", ["eval.max_new_tokens=5"])
    written = {a.key: a for a in Evaluation(model, recipe, tokenizer).answers(WHOLE, quiet=True)}
    rows = table((runs / f"watched/logs/samples/step={STEPS}.md").read_text())
    data = VideoDataModule(recipe, tokenizer)
    plans = fixed_plans(data, 3)
    assert [row[0].split(" ")[0] for row in rows] == [plan.packs[0][0].unit.key for plan in plans]
    for row in rows:
        answer = written[row[0].split(" ")[0]]
        assert row[2:4] == [_cell(answer.right), _cell(answer.written)]
        assert row[4] == ("right" if answer.right == answer.written else "wrong")

    events = read_events(runs / "watched/logs")
    assert events["steps"] == [3, STEPS]
    for i, plan in enumerate(plans):
        png = (runs / f"watched/logs/samples/{i}.png").read_bytes()
        assert events["images"][f"samples/{i}"] == png
        frames = data.val_reader[plan].packs[0].frames
        factor = decoded(png).shape[0] // frames.shape[2]
        np.testing.assert_array_equal(decoded(png)[::factor, ::factor][:, :-1], frames[0].permute(1, 2, 0)[:, :-1])
    for row in rows:
        assert all(cell in events["text"] for cell in row[:4])


def table(markdown: str) -> list[list[str]]:
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")]
    return rows[2:]


def read_events(folder: Path) -> dict:
    """What TensorBoard itself finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("events.out.tfevents.*")
    found = EventAccumulator(str(file), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    images = {tag: found.Images(tag)[-1].encoded_image_string for tag in found.Tags()["images"]}
    texts = found.Tensors("samples/table/text_summary")
    text = texts[-1].tensor_proto.string_val[0].decode()
    return {"images": images, "text": text, "steps": [t.step for t in texts]}


def decoded(png: bytes) -> np.ndarray:
    with av.open(io.BytesIO(png), "r") as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def test_a_callback_of_ones_own_runs_with_its_options(runs: Path) -> None:
    assert (runs / "note").read_text() == f"seen {STEPS}"


def test_own_loggers_get_every_figure_and_what_is_wrong_is_one_message(runs: Path) -> None:
    lines = (runs / "lines").read_text().splitlines()
    for name in ("train/loss", "val/loss", "speed/tokens_per_s", "data/used/pictures"):
        assert any(f" {name} " in line for line in lines), name
    wrong = ["log.loggers.a.logger=own_callback:Note", "log.loggers.b.logger=lightning.pytorch.loggers:WandbLogger"]
    with pytest.raises(ConfigError, match="2 problems") as caught:
        own_loggers(load_recipe(runs / "small.yaml", wrong))
    assert "own_callback:Note is no subclass of" in str(caught.value)
    assert "wandb" in str(caught.value), "what to install"
    with pytest.raises(ConfigError, match="module:Class"):
        load_recipe(runs / "small.yaml", ["log.loggers.a.logger=wandb"])


def test_what_is_wrong_with_own_callbacks_is_one_message(runs: Path, recipe: Recipe) -> None:
    overrides = [
        "callbacks.own.a.callback=own_callback:NoCallback",
        "callbacks.own.b.callback=own_callback:Nothing",
        "callbacks.own.c.callback=no_module:Ema",
        "callbacks.own.note.options={wrong: 1}",
    ]
    changed = load_recipe(runs / "watched/config.yaml", overrides)
    with pytest.raises(ConfigError) as caught:
        optional_callbacks(changed, runs, lambda: pytest.fail("not paused here"))
    said = str(caught.value)
    assert "4 problems" in said
    for words in ("is no subclass of", "has no Nothing", "cannot import no_module", "wrong"):
        assert words in said
    with pytest.raises(ConfigError, match=r"Did you mean callbacks\.samples\?"):
        load_recipe(runs / "small.yaml", ["callbacks.sample=null"])
    with pytest.raises(ConfigError, match=r"Did you mean callbacks\.transfer\.every\?"):
        load_recipe(runs / "small.yaml", ["callbacks.transfer.evry=3"])


def test_the_fixed_samples_are_those_that_fit_and_unreadable_ones_are_replaced(recipe: Recipe) -> None:
    data = VideoDataModule(recipe, Tokenizer.load(""))
    keys = [plan.packs[0][0].unit.key for plan in fixed_plans(data, 3)]
    assert len(set(keys)) == 3
    assert [p.packs[0][0].unit.key for p in fixed_plans(data, 2)] == keys[:2]
    assert len(fixed_plans(data, 100)) == 5
    plan, last = fixed_plans(data, 2)[0], fixed_plans(data, 5)[4]
    assert [spare.unit.key for spare in plan.packs[0][0].spares] == [keys[2], last.packs[0][0].unit.key]


def test_what_cannot_be_read_is_said_and_a_blank_pack_keeps_the_rank_in_step(
    recipe: Recipe, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = load_recipe(runs / "watched/config.yaml", ["data.val.pictures.dataset=own_callback:Torn"])
    data = VideoDataModule(torn, Tokenizer.load(""))
    packs = list(read_share(data.val_reader, fixed_plans(data, 3), 1, 2))
    assert [(pack.keys, pack.num_labels, len(pack.ids)) for pack in packs] == [([], 0, 1)] * 2
    said = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(said) == 1  # of the second of three samples, with its spare; the other pack has no sample
    assert "(nor could pictures/own_callback:Torn/" in said[0]
    assert all("pictures/own_callback:Torn" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "more"), [(1, []), (4, []), (2, ["parallel.compile=true"])])
def test_training_is_the_same_on_any_number_of_ranks_and_compiled(world: int, more: list[str], tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path))
    often = ["callbacks.transfer={every: 1, samples: 3}", "callbacks.memory.every=1", "callbacks.samples.samples=3"]
    run(tmp_path, world, "train", path, f"out={tmp_path / 'watched'}", *HELD_OUT, *often, *more)
    run(tmp_path, world, "train", path, f"out={tmp_path / 'plain'}", *HELD_OUT, *ALL_OFF, *more)
    watched, plain = weights(tmp_path / "watched"), weights(tmp_path / "plain")
    assert all(torch.equal(watched[k], plain[k]) for k in plain)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
