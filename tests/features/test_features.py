"""Features stored once: bit for bit those that training makes, refused where they are not."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_helpers import TALK, clip, corpus, make_recipe
from safetensors.torch import load_file
from torch import Tensor
from tree import ROOT, Run

from timeviper.config import FramesConfig, Recipe, TowerConfig
from timeviper.datamodules.block import Block, receive
from timeviper.datamodules.build import build_plan, load_index, load_sources, pack_format
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.fetch import fetch_sample
from timeviper.datamodules.frames.stored import StoredFrames, decode_features
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import read_member
from timeviper.errors import ConfigError
from timeviper.features.check import check_features, fingerprint, frozen_towers
from timeviper.features.write import write_features
from timeviper.inference.held_out import BLIND, WHOLE, Evaluation
from timeviper.model.viper import TimeViper
from timeviper.model.vision.build import build_tower
from timeviper.model.vision.tower import FRAMES_PER_CHUNK
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, load_export, write_export

FEATURES = "features.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With several, the same products were seen to round differently from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- a frame by itself ----------------------------------------------------------------------------------

TOWERS = {
    "vit": TowerConfig("vit", "", 32, 8, 96, 2, 4, 192, 0, -1, 4),
    "siglip": TowerConfig("siglip", "", 42, 14, 72, 3, 3, 100, 0, -2, 5),  # no size that vectors divide
    "dinov2": TowerConfig("dinov2", "", 42, 14, 48, 3, 3, 96, 4, -2, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TOWERS)
def test_a_frozen_tower_sees_each_frame_by_itself(family: str, dtype: torch.dtype) -> None:
    cfg = TOWERS[family]
    torch.manual_seed(0)
    tower = build_tower(cfg).to(dtype).requires_grad_(False)
    frames = torch.randint(0, 256, (2 * FRAMES_PER_CHUNK + 5, 3, cfg.image_size, cfg.image_size), dtype=torch.uint8)
    whole = tower(frames, cfg.tokens)
    for count in (1, 2, 7, FRAMES_PER_CHUNK, FRAMES_PER_CHUNK + 1, len(frames)):
        chosen = torch.randperm(len(frames))[:count]
        assert torch.equal(tower(frames[chosen], cfg.tokens), whole[chosen])
    assert tower(frames[:0], cfg.tokens).shape == (0, cfg.tokens, cfg.width)
    assert tower(frames[:0], cfg.tokens).dtype == dtype


# ---- a small corpus, and a stage to start from ----------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_shards(corpus(), folder, samples_per_shard=3)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a stage before could have left."""
    folder = tmp_path_factory.mktemp("stage") / "export"
    recipe = make_recipe(Path("nowhere"), "", "seed=3")
    write_export(folder, build_model(recipe).state_dict(), recipe, Tokenizer.load(""), 1)
    return folder


@pytest.fixture(scope="module")
def stored(videos: Path, export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the corpus: one set, for training and held out."""
    out = tmp_path_factory.mktemp("features")
    assert write_features(make_recipe(videos, export), out, [], workers=0)
    return out / "train" / "mine"


def steps(recipe: Recipe, count: int) -> Iterator[StepBatch]:
    tokenizer = Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(recipe))
    return (reader[plan] for _, plan in zip(range(count), build_plan(recipe, tokenizer).steps()))


# ---- writing --------------------------------------------------------------------------------------------


def test_shards_of_features_are_shards(videos: Path, export: Path, stored: Path) -> None:
    report = check_shards(stored)
    assert (report.shards, report.samples, report.problems, report.notes) == (3, 8, [], [])
    recipe = make_recipe(videos, export)
    digest = fingerprint(recipe, frozen_towers(recipe)).digest
    for a, b in zip(load_index(videos), load_index(stored), strict=True):
        assert a.path.name == b.path.name
        for video, feature in zip(a.samples, b.samples, strict=True):
            has_media = video.media != "none"
            members = {"json", FEATURES} if has_media else {"json"}
            assert (set(feature.members), feature.fingerprint) == (members, digest if has_media else None)
            same = replace(feature, members=video.members, fingerprint=None, keyframe_spacing=video.keyframe_spacing)
            assert same == video  # the plan sees no difference
    picture = next(r for s in load_index(stored) for r in s.samples if r.key == "picture")
    shard = next(s for s in load_index(stored) if picture in s.samples)
    text = json.loads(read_member(shard.path, *picture.members["json"][:3]))
    assert text["media"] == [{"type": "image", "member": FEATURES}]
    assert text["source"] == "mine"


def test_what_is_stored_is_what_the_frozen_tower_makes(videos: Path, export: Path, stored: Path) -> None:
    recipe = make_recipe(videos, export)
    tower = frozen_towers(recipe)["main"]
    (a,), (b,) = (load_sources({"mine": make_recipe(f).data.sources["mine"]}).values() for f in (videos, stored))
    assert len(a) == len(b) > 8
    for i in range(len(a)):
        _, frames = fetch_sample(a[i], recipe.data.frames, 32, {})
        _, found = fetch_sample(b[i], recipe.data.frames, 32, {})
        assert [f.kind for f in frames] == [f.kind for f in found]
        for whole, small in zip(frames, found, strict=True):
            assert np.array_equal(whole.times, small.times)
            facts = ("duration", "count", "fps", "missing")
            assert [getattr(whole, f) for f in facts] == [getattr(small, f) for f in facts]
            assert isinstance(small, StoredFrames)
            assert torch.equal(tower(torch.as_tensor(whole.pixels), 4), small.features["main"])


def test_stopped_and_continued_gives_the_same_bytes(videos: Path, export: Path, stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "train" / "mine"
    shutil.copytree(stored, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    index_path(out / "shard-00000.tar").unlink()  # killed between tar and index
    for left in (out / "shard-00002.tar", index_path(out / "shard-00002.tar")):
        left.unlink()
    (out / "shard-00002.tar.parts").mkdir()  # killed in the middle of a shard
    (out / "shard-00002.tar.parts" / "0").write_bytes(b"half")
    kept = (out / "shard-00001.tar").stat().st_mtime_ns
    assert write_features(make_recipe(videos, export), tmp_path, [], workers=0)
    assert (out / "shard-00001.tar").stat().st_mtime_ns == kept
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_of_other_features_is_left_alone(videos: Path, export: Path, stored: Path) -> None:
    with pytest.raises(ValueError, match=r"there already with features of another tower, of other frames"):
        write_features(make_recipe(videos, export, "data.frames.fps=1"), stored.parent.parent, [], workers=0)
    with pytest.raises(ConfigError, match="holds features already"):
        write_features(make_recipe(stored, export), stored / "again", [], workers=0)


def test_unreadable_samples_are_left_out_and_listed(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [clip(0), clip(1) | {"mp4": clip(1)["mp4"][:200]}, clip(2)]
    write_shards(samples, tmp_path / "videos")
    recipe = make_recipe(tmp_path / "videos", export)
    for note in ("mine/shard-00000.tar/clip01: ", "left out by an earlier run"):
        assert write_features(recipe, tmp_path / "out", [], workers=0)
        said = capsys.readouterr().out
        assert "1 samples could not be read and are left out" in said
        assert note in said
    left = load_index(tmp_path / "out/train/mine")[0].samples
    assert [r.key for r in left] == ["clip00", "clip02"]
    broken = [clip(i) | {"mp4": b"no video"} for i in range(3)]
    write_shards([*broken, clip(8)], tmp_path / "bad")
    with pytest.raises(ValueError, match=r"3 samples could not be read[\s\S]*more than data.max_skipped"):
        write_features(make_recipe(tmp_path / "bad", export), tmp_path / "out2", [], workers=0)


def test_a_python_class_becomes_shards_of_features(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(clip(i)["mp4"])
    (tmp_path / "my_films.py").write_text(
        "class Films:\n"
        "    def __len__(self): return 3\n"
        f"    def record(self, i): return {{'media': [{{'type': 'video', 'member': 'mp4'}}], 'messages': {TALK}}}\n"
        f"    def open(self, i, member): return f'{tmp_path}/{{i}}.mp4'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = make_recipe(Path("''"), export, "data.sources.mine.dataset=my_films:Films", "data.val.mine=null")
    assert write_features(recipe, tmp_path / "out", [], workers=0)
    (shard,) = load_index(tmp_path / "out/train/mine")
    assert [(r.key, r.duration, r.frames) for r in shard.samples] == [("0", 4.0, 16), ("1", 4.0, 16), ("2", 4.0, 16)]
    check(make_recipe(tmp_path / "out/train/mine", export))


# ---- training -------------------------------------------------------------------------------------------


def train(recipe: Recipe, count: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and last weights of some steps of AdamW."""
    model = build_model(recipe)
    assert isinstance(model, TimeViper)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for batch in steps(recipe, count):
        assert not batch.skipped
        for pack in batch.packs:
            out = model(pack)
            (out.loss_sum / max(out.num_labels, 1)).backward()
            losses.append(out.loss_sum.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, model.state_dict()


def test_losses_and_weights_are_those_of_training_from_videos(videos: Path, export: Path, stored: Path) -> None:
    losses, weights = train(make_recipe(videos, export), 4)
    from_features, weights_from_features = train(make_recipe(stored, export), 4)
    assert len(set(losses)) > 4
    assert from_features == losses
    assert all(torch.equal(weights[name], p) for name, p in weights_from_features.items())


def test_videos_and_features_may_share_a_pack(videos: Path, export: Path, stored: Path) -> None:
    both = [f"data.sources.stored.shards={stored}", "data.mixture=samples"]
    recipe = make_recipe(videos, export, *both)
    twin = make_recipe(videos, export, both[0].replace(str(stored), str(videos)), both[1])
    losses, weights = train(twin, 4)
    mixed, weights_mixed = train(recipe, 4)
    assert mixed == losses
    assert all(torch.equal(weights[name], p) for name, p in weights_mixed.items())
    packs = [pack for batch in steps(recipe, 4) for pack in batch.packs]
    pack = next(
        p for p in packs if p.frame_order is not None and not torch.equal(p.frame_order.sort()[0], p.frame_order)
    )
    assert pack.num_frames == sum(pack.frame_counts) == len(pack.frame_times)
    # Through a loader process, and back.
    ours, theirs = multiprocessing.Pipe()
    Block(0).send(StepBatch(0, [pack]), theirs, 7)
    number, batch = receive(ours.recv(), ours)
    (back,) = batch.packs
    assert number == 7
    assert back.rest() == pack.rest()
    for name, tensor in pack.tensors().items():
        assert torch.equal(back.tensors()[name], tensor)
    order, moved = pack.frame_order, pack.to("cpu").frame_order
    assert order is not None
    assert moved is not None
    assert torch.equal(moved, order)


def test_damaged_features_are_never_read(videos: Path, export: Path, stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "damaged")
    shard = load_index(tmp_path / "damaged")[0]
    at = shard.samples[0].members[FEATURES]
    with shard.path.open("r+b") as file:
        file.seek(at[0] + at[1] - 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 64]))
    assert [p.key for p in check_shards(tmp_path / "damaged").problems] == [shard.samples[0].key]
    skipped = [s for batch in steps(make_recipe(tmp_path / "damaged", export), 2) for s in batch.skipped]
    assert skipped
    assert all(shard.samples[0].key in s.key and "damaged" in s.reason for s in skipped)
    raw = read_member(shard.path, *shard.samples[1].members[FEATURES][:2])
    for bad in (b"", raw[:50], b"\0" * 8 + raw[8:], raw[:-8], raw.replace(b"missing", b"mission", 1)):
        with pytest.raises(ValueError, match=r"header|features"):
            decode_features(bad, 32)
    with pytest.raises(ValueError, match=r"features are of 6 frames of a video of 3.0 s, but 3 are wanted"):
        decode_features(raw, 32, FramesConfig(fps=1, max_frames=12))


# ---- what is refused ------------------------------------------------------------------------------------


def check(recipe: Recipe) -> None:
    train_, val = (load_sources(s) for s in (recipe.data.sources, recipe.data.val))
    check_features(recipe, train_, val)


def test_other_features_are_refused_field_by_field(videos: Path, export: Path, stored: Path, tmp_path: Path) -> None:
    check(make_recipe(stored, export))
    other = tmp_path / "export"
    source = make_recipe(videos, "", "seed=4")
    write_export(other, build_model(source).state_dict(), source, Tokenizer.load(""), 1)
    wrong = make_recipe(stored, other, "parallel.param_dtype=bfloat16", "data.frames.fps=1")
    with pytest.raises(ConfigError) as caught:
        check(wrong)
    assert [p.key for p in caught.value.problems] == ["data.sources.mine.shards", "data.val.mine.shards"]
    said = str(caught.value)
    for part in (
        "towers.main.sha256: ",
        "dtype: 'float32' there, 'bfloat16' here",
        "frames: 4 there, 2 here, of 'clip00'",
    ):
        assert part in said
    assert "timeviper shards features" in said
    check(make_recipe(videos, other))  # videos are nobody's


def test_only_a_frozen_tower_with_weights_has_features(
    videos: Path, export: Path, stored: Path, tmp_path: Path
) -> None:
    trains = "train.trainable=[tower,projector]"
    with pytest.raises(ConfigError, match=r"this stage trains it[\s\S]*data.sources.mine"):
        check(make_recipe(stored, export, trains))
    with pytest.raises(ConfigError, match="its features change with every step"):
        write_features(make_recipe(videos, export, trains), tmp_path, [], 0)
    with pytest.raises(ConfigError, match="has random weights"):
        write_features(make_recipe(videos), tmp_path, [], 0)
    with pytest.raises(ValueError, match=r"--source nobody: the recipe has data.sources.mine, data.val.mine"):
        write_features(make_recipe(videos, export), tmp_path, ["nobody"], 0)


def test_phases_may_change_bounds_that_do_not_bind(videos: Path, export: Path, stored: Path, tmp_path: Path) -> None:
    """The videos last 2 to 4 s, so at 2 frames a second there are at most 8."""
    later = "train.phases.later.start=1"
    check(make_recipe(stored, export, later, "train.phases.later.max_frames=9"))
    fewer = [later, "train.phases.later.max_frames=7"]
    with pytest.raises(ConfigError, match=r"frames: 8 there, 7 here, of 'clip02'.*\(train.phases.later: fps 2, 1 to 7"):
        check(make_recipe(stored, export, *fewer))
    with pytest.raises(
        ConfigError, match=r"Different frames are wanted[\s\S]*train.phases.later for data.sources.mine"
    ):
        write_features(make_recipe(videos, export, *fewer), tmp_path, [], 0)
    # A phase that does not draw from the source does not matter.
    paused = ["train.phases.later.weights.mine=0", f"data.sources.other.shards={videos}"]
    check(make_recipe(stored, export, *fewer, *paused))


# ---- evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["eval.tokens_per_piece=4096", "eval.tokens_per_piece=30"])
def test_evaluation_from_features_equals_that_from_videos(videos: Path, export: Path, stored: Path, piece: str) -> None:
    """In packs, and with prompts that are too long for them: media of all kinds, several in one, and text alone."""
    answers = []
    for shards in (videos, stored):
        overrides = [f"data.val.mine.shards={shards}", "eval.max_new_tokens=4", "data.frames.fps=2", piece]
        evaluation = Evaluation(*load_export(export, overrides))
        found = [evaluation.answers(variant, quiet=True) for variant in (WHOLE, BLIND)]
        # `sample` digests the bytes that were read, and these are other ones
        answers.append([[replace(a, sample="") for a in each] for each in found])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1] or len(answers[0][0]) > 8
    with pytest.raises(ConfigError, match="frames: 4 there, 2 here"):
        Evaluation(*load_export(export, [f"data.val.mine.shards={stored}", "data.frames.fps=1"]))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_from_features_through_the_command_line(
    videos: Path, export: Path, tmp_path: Path, cli: Run, ranks: int
) -> None:
    """As people run it: sharded, with a loader process, features of one source beside videos of another."""
    recipe = "recipes/tiny/stage2_instruct.yaml"
    small = ["data.frames.fps=2", "data.tokens_per_pack=400", "data.packs_per_step=2", "train.steps=5", "log.every=1"]
    small += [f"data.sources.{name}=null" for name in ("images", "clips", "questions", "motion")]
    small += ["data.sources.videos.types=''", "data.val.videos.types=''", "train.validate_every=0", "data.workers=1"]
    small += [f"train.init_from={export}", "log.tensorboard=false", f"data.sources.mine.shards={videos}"]
    plain = [*small, f"data.sources.videos.shards={videos}", f"data.val.videos.shards={videos}"]
    cli("shards", "features", recipe, str(tmp_path / "features"), *plain, "--source", "videos", "--workers", "1")
    overrides = (tmp_path / "features/overrides.txt").read_text().split()
    assert len(overrides) == 2  # data.sources.videos and data.val.videos
    one_thread = {"OMP_NUM_THREADS": "1"}
    for name, changes in (("videos", plain), ("features", [*plain, *overrides])):
        args = ["-m", "timeviper.cli", "train", recipe, *changes, f"out={tmp_path / name}"]
        if ranks > 1:
            args = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", *args]
        subprocess.run([sys.executable, *args], cwd=ROOT, check=True, timeout=300, env=os.environ | one_thread)
    runs = [tmp_path / "videos", tmp_path / "features"]
    a, b = (load_file(run / "export/model.safetensors") for run in runs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    csv = [(run / "logs/from-step-0/metrics.csv").read_text().splitlines() for run in runs]
    column = csv[0][0].split(",").index("train/loss")
    losses = [[row.split(",")[column] for row in rows[1:]] for rows in csv]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) >= 5
