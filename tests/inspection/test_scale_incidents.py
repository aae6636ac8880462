"""Steps that go wrong on two ranks, repeated in one process: with dropout, and from a NaN in stored features."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_helpers import corpus, make_recipe
from jobs import Job, incident, plant
from scale_data import write_mixture

from timeviper.config.load import dump, load_recipe
from timeviper.datamodules.build import load_index
from timeviper.datamodules.frames.stored import decode_features
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.index_file import ShardIndex
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import FEATURES
from timeviper.datamodules.shards.tar import read_member
from timeviper.features.write import write_features
from timeviper.inspection.incident import Incident
from timeviper.inspection.replay import read_packs, repeat, replay
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, write_export

torch.set_num_threads(1)

# ---- dropout in adapters --------------------------------------------------------------------------------

MIXED = {
    "texts": {"kind": "text", "letters": 20},
    "pictures": {"kind": "image"},
    "videos": {"kind": "video"},
}


def test_dropout_in_adapters_draws_the_same_in_a_replay(tmp_path: Path) -> None:
    """An exploding step has a finite loss, which must be that of the run to the last bit."""
    lora = {"rank": 2, "dropout": 0.5, "targets": ["attention", "mamba", "mlp"]}
    guard = {"spike": 5.0, "window": 4}
    recipe = write_mixture(tmp_path, MIXED, model={"lora": lora}, train={"guard": guard})
    planted = {"step": 5, "weight": "decoder.lm_head.weight", "row": 1, "value": -1e3}
    job = Job(tmp_path, 2, "train", str(recipe), f"out={tmp_path / 'run'}", first=plant, **planted)
    assert job.end() == [1, 1], job.said()
    bundle = tmp_path / "run/incidents/step=5"
    found = Incident.read(bundle)
    assert found.findings.loss == found.loss, "the guard's second look"
    trained = load_recipe(bundle / "config.yaml")
    packs = read_packs(found, trained)
    assert repeat(bundle, found, trained, packs).loss == found.loss
    without = replace(trained, model=replace(trained.model, lora=replace(trained.model.lora, dropout=0.0)))
    assert repeat(bundle, found, without, packs).loss != pytest.approx(found.loss, rel=1e-6)


# ---- data ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The export of a stage, and the features that its frozen tower makes of a small corpus."""
    folder = tmp_path_factory.mktemp("stage")
    write_shards(corpus(), folder / "videos", samples_per_shard=3)
    made = make_recipe(folder / "videos", "", "seed=3")
    write_export(folder / "export", build_model(made).state_dict(), made, Tokenizer.load(""), 1)
    recipe = make_recipe(folder / "videos", folder / "export")
    assert write_features(recipe, folder / "features", [], workers=0)
    return folder / "export", folder / "features" / "train" / "mine"


def overwrite(folder: Path, shard: ShardIndex, at: int, raw: bytes) -> None:
    """Other bytes in a shard, under an index that finds them right."""
    with shard.path.open("r+b") as file:
        file.seek(at)
        file.write(raw)
    for index in folder.glob("*.idx.json*"):
        index.unlink()
    index_shards(folder)


def test_a_nan_in_stored_features_is_named_and_repeated_in_one_process(
    stage: tuple[Path, Path], tmp_path: Path
) -> None:
    export, features = stage
    shard = load_index(features)[0]
    record = next(r for r in shard.samples if r.key == "clip01")
    start, size = record.members[FEATURES][:2]
    before = shard.path.read_bytes()
    try:
        overwrite(features, shard, start + size - 4, struct.pack("<f", float("nan")))
        recipe = make_recipe(
            features, export, "train.validate_every=0", "data.workers=0", "parallel.param_dtype=float32"
        )
        recipe.train.steps, recipe.data.val = 4, {}
        dump(recipe, tmp_path / "stored.yaml")
        job = Job(tmp_path, 2, "train", str(tmp_path / "stored.yaml"), f"out={tmp_path / 'run'}")
        assert job.end() == [1, 1], job.said()
        (bundle,) = (tmp_path / "run/incidents").iterdir()
        bad = [p for p in incident(bundle)["findings"]["packs"] if p["first"]]
        assert bad
        for pack in bad:
            assert pack["first"]["layer"].startswith("projectors.main")
            assert {key.rpartition("#")[0] for key in pack["first"]["keys"]} == {f"mine/{shard.path.name}/clip01"}
        assert f"rank {bad[0]['rank']}, pack {bad[0]['index']}, sample" in job.said()
        assert bad[0]["first"]["keys"][0] in job.said()
        assert replay(bundle)
    finally:
        overwrite(features, shard, 0, before)


def test_times_that_are_no_numbers_are_refused(stage: tuple[Path, Path]) -> None:
    shard = load_index(stage[1])[0]
    record = next(r for r in shard.samples if r.key == "clip01")
    raw = read_member(shard.path, *record.members[FEATURES][:2])
    (medium,) = decode_features(raw, 32)
    times = np.asarray(medium.times, "<f8").tobytes()
    assert raw.count(times) == 1
    bad = raw.replace(times, times[:-8] + struct.pack("<d", float("nan")))
    with pytest.raises(ValueError, match=r"times of \d+ frames, 1 of which are not finite"):
        decode_features(bad, 32)
