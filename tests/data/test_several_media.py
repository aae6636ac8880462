"""Samples of several media: the plan's frames and tokens are those that the reader yields, turns whole or split."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_helpers import raw_tar
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, cost_model, load_sources, pack_format
from timeviper.datamodules.frames.share import STILL, Length, frame_counts, shared
from timeviper.datamodules.frames.video import frame_count
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.index_file import Turn
from timeviper.datamodules.turns import turns_note, unsupervised_share
from timeviper.datamodules.world.render import encode_image
from timeviper.errors import ConfigError
from timeviper.pack import Kind, Pack
from timeviper.planning.hardware import GPUS
from timeviper.planning.preview import preview
from timeviper.planning.report import print_plan
from timeviper.planning.stage import plan_stage
from timeviper.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load()
SAID = "What colour is the circle that appears first?"
TOKENIZER.config["bytes_per_token"] = len(SAID) / len(TOKENIZER.encode(SAID))  # here an estimate is no guess
LENGTHS = (3, 10, 24, 41)  # frames at 10 a second


class Files(dict[str, bytes]):
    def __repr__(self) -> str:
        return "Files"  # an example that fails is printed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("media")
    still = encode_image(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy(), "png")
    clips = {f"{n}.mp4": write_clip(folder / f"{n}.mp4", n).read_bytes() for n in LENGTHS}
    return Files({"png": still} | clips)


media = st.lists(st.sampled_from(["png", *(f"{n}.mp4" for n in LENGTHS)]), min_size=0, max_size=4)
wanted = st.builds(
    lambda fps, least, more: FramesConfig(fps, least, least + more),
    st.sampled_from([0.5, 1.0, 4.0, 30.0]),
    st.integers(1, 4),
    st.integers(0, 20),
)


def conversation(kinds: list[str], turn_of: list[int], turns: int, marked: bool) -> list[dict[str, str]]:
    """`turns` questions with answers, medium i asked about in turn `turn_of[i]`."""
    marks = ["<image>\n" if kind == "png" else "<video>\n" for kind in kinds]
    said = []
    for turn in range(turns):
        own = "".join(m for m, t in zip(marks, turn_of) if t == turn) if marked else ""
        said.append({"role": "user", "content": f"{own}{SAID}"})
        said.append({"role": "assistant", "content": " ".join([SAID] * (turn + 1))})
    return said


def recipe_of(folder: Path, frames: FramesConfig, *settings: str) -> Recipe:
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", ["data.tokens_per_pack=20000", *settings])
    recipe.data.sources, recipe.data.val = {"mine": SourceConfig(shards=str(folder))}, {}
    recipe.data.frames, recipe.train.phases = frames, {}
    return recipe


@settings(max_examples=20, deadline=None)
@given(
    kinds=media,
    frames=wanted,
    turns=st.integers(1, 3),
    seed=st.integers(0, 99),
    marked=st.booleans(),
    time=st.sampled_from(["none", "sentence", "frames"]),
    split=st.booleans(),
)
def test_planned_frames_and_tokens_are_those_that_are_read(
    files: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    frames: FramesConfig,
    turns: int,
    seed: int,
    marked: bool,
    time: str,
    split: bool,
) -> None:
    turn_of = sorted((seed * (i + 3)) % turns for i in range(len(kinds)))
    members = [(f"{i}.{kind.rpartition('.')[2]}", files[kind]) for i, kind in enumerate(kinds)]
    listed = [{"type": "image" if n.endswith("png") else "video", "member": n} for n, _ in members]
    record = {"media": listed, "messages": conversation(kinds, turn_of, turns, marked)}
    folder = tmp_path_factory.mktemp("shards")
    raw_tar(folder / "a.tar", [("k.json", json.dumps(record).encode()), *((f"k.{n}", data) for n, data in members)])
    index_shards(folder)
    recipe = recipe_of(folder, frames, f"chat.time={time}", f"data.turns={'split' if split else 'whole'}")
    unit = load_sources(recipe.data.sources)["mine"][0]
    item = cost_model(recipe, TOKENIZER).item(unit, frames)
    batch = PackReader(TOKENIZER, pack_format(recipe))[StepPlan(0, frames, ((item,),))]
    assert not batch.skipped, batch.skipped
    (pack,) = batch.packs
    a_frame = pack_format(recipe).tokens_per_frame
    assert pack.frame_counts == [sum(s.groups) for s in item.sequences]
    assert (pack.num_frames, pack.num_vision) == (item.num_frames, item.num_frames * a_frame)
    assert len(pack.frames) == item.read <= max(frames.max_frames, len(kinds))
    assert len(pack.lengths) == (turns if split else 1)
    text = [n - f * a_frame for n, f in zip(pack.lengths, pack.frame_counts)]
    for planned, real in zip(item.sequences, text):
        assert planned.text == pytest.approx(real, abs=4 + 4 * len(kinds))
    assert item.tokens == sum(s.text for s in item.sequences) + pack.num_vision


@given(
    lengths=st.lists(st.tuples(st.floats(0.1, 5000.0), st.integers(1, 10_000)).map(lambda p: Length(*p)), max_size=6),
    stills=st.integers(0, 4),
    frames=wanted,
)
def test_media_share_what_a_sample_may_have(lengths: list[Length], stills: int, frames: FramesConfig) -> None:
    every = [*lengths, *[STILL] * stills]
    counts = frame_counts(every, frames)
    free = replace(frames, max_frames=10**9)
    alone = [frame_count(m.duration, free, m.frames) for m in every]
    assert sum(counts) == (min(sum(alone), max(frames.max_frames, len(every))) if every else 0)
    assert all(1 <= n <= m for n, m in zip(counts, alone))
    assert all(each.max_frames == n for each, n in zip(shared(every, frames), counts)) or len(every) == 1
    order = sorted(range(len(every)), key=lambda i: alone[i])
    assert all(counts[a] <= counts[b] + 1 for a, b in pairwise(order)), "who has more of its own gets more"


def test_three_long_videos_fill_no_pack_beyond_its_size(files: dict[str, bytes], tmp_path: Path) -> None:
    """Several frames a medium were read where the plan had counted as many of all together."""
    answer = [{"role": "user", "content": SAID}, {"role": "assistant", "content": SAID}]
    members = [(f"k.{i}.mp4", files["41.mp4"]) for i in range(3)]
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": answer}).encode()), *members])
    index_shards(tmp_path)
    recipe = recipe_of(tmp_path, FramesConfig(10.0, 1, 12), "data.tokens_per_pack=500")
    plan = next(build_plan(recipe, TOKENIZER).steps())
    assert all(item.num_frames == 12 for pack in plan.packs for item in pack)
    batch = PackReader(TOKENIZER, pack_format(recipe))[plan]
    for pack, items in zip(batch.packs, plan.packs):
        assert pack.frame_counts == [12] * len(items)
        assert len(pack.ids) == pytest.approx(sum(item.tokens for item in items), rel=0.05)


def test_the_index_tells_turns_and_media_apart(files: dict[str, bytes], tmp_path: Path) -> None:
    talk = conversation(["png", "10.mp4", "24.mp4"], [0, 0, 1], 2, marked=True)
    members = [("k.0.png", files["png"]), ("k.1.mp4", files["10.mp4"]), ("k.2.mp4", files["24.mp4"])]
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": talk}).encode()), *members])
    index_shards(tmp_path)
    record = load_sources({"a": SourceConfig(shards=str(tmp_path))})["a"][0].record
    assert [m.frames for m in record.each] == [1, 10, 24]
    assert [m.duration for m in record.each] == pytest.approx([0.0, 1.0, 2.4])
    sizes = [len(m["content"]) for m in talk]
    assert record.conversations[0].turns == (Turn(sizes[0] + sizes[1], sizes[1], 2), Turn(sum(sizes[2:]), sizes[3], 1))


def test_an_index_without_lengths_of_each_medium_names_its_remedy(files: dict[str, bytes], tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a ring"}]
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": talk}).encode()), ("k.mp4", files["10.mp4"])])
    for path in index_shards(tmp_path):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace('"version":3', '"version":2'))
        else:
            path.unlink()
    with pytest.raises(ValueError, match=r"version 2, this program reads 3; .*timeviper shards index"):
        load_sources({"a": SourceConfig(shards=str(tmp_path))})
    assert index_shards(tmp_path), "the command that is named mends it"
    load_sources({"a": SourceConfig(shards=str(tmp_path))})


def test_split_turns_share_their_frames(files: dict[str, bytes], tmp_path: Path) -> None:
    """Each sequence is what the turn alone would be; pixels are there once."""
    talk = conversation(["10.mp4", "24.mp4"], [0, 2], 3, marked=True)
    members = [("k.0.mp4", files["10.mp4"]), ("k.1.mp4", files["24.mp4"])]
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": talk}).encode()), *members])
    index_shards(tmp_path)
    frames = FramesConfig(4.0, 1, 8)
    recipe = recipe_of(tmp_path, frames, "data.turns=split")
    unit = load_sources(recipe.data.sources)["mine"][0]

    def read(recipe: Recipe) -> Pack:
        item = cost_model(recipe, TOKENIZER).item(unit, frames)
        form = replace(pack_format(recipe), supervise="all")
        return PackReader(TOKENIZER, form)[StepPlan(0, frames, ((item, item),))].packs[0]

    split, whole = read(recipe), read(recipe_of(tmp_path, frames))
    assert whole.frame_order is None
    first = whole.frame_counts[0]
    assert (split.frame_counts, len(split.frames)) == ([3, 3, 8] * 2, 2 * 8)
    assert first == 8
    assert split.goes_on == [False, True, True] * 2
    order = split.frame_order
    assert order is not None
    assert order.tolist() == [*range(3), *range(3), *range(8), *range(8, 11), *range(8, 11), *range(8, 16)]
    last = split.ids.split(split.lengths)[2]
    assert torch.equal(last, whole.ids.split(whole.lengths)[0])
    assert torch.equal(split.frames, whole.frames)
    labels = [part[part >= 0].tolist() for part in split.labels.split(split.lengths)[:3]]
    one = whole.labels[: whole.lengths[0]]
    assert [*chain(*labels)] == one[one >= 0].tolist(), "each answer once"
    assert int((split.kind == Kind.VISION).sum()) == split.num_frames * pack_format(recipe).tokens_per_frame


def test_split_turns_that_no_pack_holds_together_are_named(files: dict[str, bytes], tmp_path: Path) -> None:
    """And what would take them; whole, the same conversation fits."""
    talk = conversation(["10.mp4"], [0], 6, marked=True)
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": talk}).encode()), ("k.mp4", files["10.mp4"])])
    index_shards(tmp_path)
    settings = ("data.tokens_per_pack=500", "data.packs_per_step=1")
    frames = FramesConfig(1.0, 1, 2)
    split, whole = recipe_of(tmp_path, frames, "data.turns=split", *settings), recipe_of(tmp_path, frames, *settings)
    unit = load_sources(split.data.sources)["mine"][0]
    item = cost_model(split, TOKENIZER).item(unit, frames)
    assert item.cost > 500 > cost_model(whole, TOKENIZER).item(unit, frames).cost
    batch = PackReader(TOKENIZER, pack_format(split))[StepPlan(0, frames, (), (item,))]
    (lost,) = batch.skipped
    assert lost.key == "mine/a.tar/k#0"
    assert "more than data.tokens_per_pack, for 6 turns that data.turns=split reads together" in lost.reason


def test_what_attention_guided_transv_leaves_out_is_said(
    files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the preview and the plan, with the share of the answers' tokens; split, nothing is left out."""
    said = [10, 30, 60]
    talk = [m for n in said for m in ({"role": "user", "content": SAID}, {"role": "assistant", "content": "x" * n})]
    raw_tar(tmp_path / "a.tar", [("k.json", json.dumps({"messages": talk}).encode()), ("k.mp4", files["10.mp4"])])
    index_shards(tmp_path)
    frames = FramesConfig(1.0, 1, 4)
    guided, split = recipe_of(tmp_path, frames), recipe_of(tmp_path, frames, "data.turns=split")
    uniform = recipe_of(tmp_path, frames, "model.transv.stages.late.select=uniform")
    sources = load_sources(guided.data.sources)
    assert unsupervised_share(sources, {"mine": 1.0}) == 0.4
    note = turns_note(guided, sources)
    assert "40.0% of the answers' tokens are left out; data.turns=split" in note
    assert turns_note(split, sources) == turns_note(uniform, sources) == ""
    preview(guided, 1, 1)
    print_plan(plan_stage(guided, 1, GPUS["h200"]), [])
    assert "".join(capsys.readouterr().out.split()).count("".join(note.split())) == 2
    preview(split, 1, 1)
    assert "left out" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="split with train"):
        load_recipe(ROOT / "recipes/tiny/stage0_tower.yaml", ["data.turns=split"])
