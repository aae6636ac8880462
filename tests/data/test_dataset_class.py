"""A Python class as a source: planned, read and trained on like shards; every mistake of it is named."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tree import ROOT

from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, class_datasets, load_sources, pack_format
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.world.render import encode_video
from timeviper.datamodules.world.scene import draw_video
from timeviper.tokenizer import Tokenizer

CODE = '''
import io
from pathlib import Path

class Clips:
    """One clip in three forms: a path, bytes, and a file."""

    def __init__(self, folder="{folder}", kind="path"):
        self.file, self.kind = Path(folder) / "clip.mp4", kind

    def __len__(self):
        return 5

    def record(self, i):
        asked = [{{"role": "user", "content": f"What is number {{i}}?"}}, {{"role": "assistant", "content": "a ring"}}]
        return {{"media": [{{"type": "video", "member": "clip"}}], "messages": asked}}

    def open(self, i, member):
        if self.kind == "path":
            return self.file
        return self.file.read_bytes() if self.kind == "bytes" else io.BytesIO(self.file.read_bytes())

class Bare:
    def __len__(self):
        return 1

class Broken(Clips):
    def record(self, i):
        return {{"media": [{{"type": "video", "member": "clip"}}]}}

class Raising(Clips):
    def open(self, i, member):
        raise KeyError("no such clip")

class Stated(Clips):
    calls = []

    def __init__(self, folder="{folder}", count=5, duration=2.0, text=None, version=""):
        super().__init__(folder)
        self.count, self.duration, self.text = count, duration, text
        if version:
            self.version = version

    def lengths(self):
        Stated.calls.append("lengths")
        for i in range(self.count):
            text = self.text or len(f"What is number {{i}}?") + len("a ring")
            video = {{"type": "video", "duration": self.duration, "fps": 4.0, "frames": 8}}
            yield {{"media": [video], "texts": [{{"type": "chat", "text": text, "answer": 6}}]}}

    def record(self, i):
        Stated.calls.append(i)
        return super().record(i)

class Odd(Clips):
    def open(self, i, member):
        return 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my_clips.py and a clip of 2 s, from which the program is started."""
    (tmp_path / "clip.mp4").write_bytes(encode_video(draw_video(np.random.default_rng(0), 2.0, 4.0, 1, None)))
    (tmp_path / "my_clips.py").write_text(CODE.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_clips", raising=False)
    return tmp_path


def recipe(**sources: SourceConfig) -> Recipe:
    made = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml")
    made.data.sources = dict(sources)
    return made


def first_packs(made: Recipe, count: int) -> list:
    tokenizer = Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(made), class_datasets(made.data.sources))
    batches = [reader[step] for step in islice(build_plan(made, tokenizer).steps(), count)]
    assert not [i for b in batches for i in b.skipped]
    return [pack for b in batches for pack in b.packs]


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_a_class_is_read_like_a_shard_of_the_same_samples(folder: Path, kind: str) -> None:
    dataset = ClassDataset("my_clips:Clips", {"kind": kind})
    samples = [
        {"__key__": str(i), "clip.mp4": folder / "clip.mp4", "json": dict(dataset.record(str(i)))} for i in range(5)
    ]
    for sample in samples:
        sample["json"]["media"] = [{"type": "video", "member": "clip.mp4"}]
    write_shards(samples, folder / "shards")
    ours = first_packs(recipe(mine=SourceConfig(dataset="my_clips:Clips", options={"kind": kind})), 2)
    theirs = first_packs(recipe(mine=SourceConfig(shards=str(folder / "shards"))), 2)
    assert sorted(k.rpartition("/")[2] for p in ours for k in p.keys) == sorted(
        k.rpartition("/")[2] for p in theirs for k in p.keys
    )
    for a, b in zip(ours, theirs):
        assert len(a.keys) == len(b.keys) > 0
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.frame_times, b.frame_times)


def test_all_samples_are_known_to_the_plan_with_measured_lengths(folder: Path) -> None:
    source = load_sources({"mine": SourceConfig(dataset="my_clips:Clips")})["mine"]
    assert len(source) == 5
    assert (source[0].record.duration, source[0].record.frames, source[0].key) == (2.0, 8, "mine/my_clips:Clips/0#0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Clips", r"data source 'mine': nowhere:Clips: cannot import nowhere"),
        ("my_clips:Nothing", "the module my_clips has no Nothing"),
        ("my_clips:Bare", "lacks record, open; a dataset has the methods __len__, record, open"),
        ("my_clips:Broken", r"my_clips:Broken.record\(0\): needs either conversations or messages"),
        ("my_clips:Raising", r"my_clips:Raising.open\(0, 'clip'\) failed: KeyError: 'no such clip'"),
        ("my_clips:Odd", r"my_clips:Odd.open\(0, 'clip'\) returned int; return a path, bytes, or a binary file"),
    ],
)
def test_mistakes_of_a_class_are_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sources({"mine": SourceConfig(dataset=name)})


def test_wrong_options_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"constructor failed: TypeError: .*unexpected keyword argument 'speed'"):
        load_sources({"mine": SourceConfig(dataset="my_clips:Clips", options={"speed": 1})})


def test_the_class_in_the_documentation_works(folder: Path) -> None:
    text = (ROOT / "docs/your-data.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Clips" in b)
    name = re.search(r"# (\w+)\.py", block)
    assert name
    (folder / "documented.py").write_text(block)
    (folder / "a.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    mine = SourceConfig(dataset="documented:Clips", options={"folder": str(folder)})
    assert f"data.sources.mine.dataset={name[1]}:Clips" in text
    assert first_packs(recipe(mine=mine), 1)[0].answers[0] == "A dog runs."


def stated(**options: object) -> ClassDataset:
    return ClassDataset("my_clips:Stated", dict(options))


def test_lengths_in_one_call_are_the_measured_ones(folder: Path) -> None:
    measured, said = ClassDataset("my_clips:Clips", {}).index(), stated().index()
    assert [(s.each, s.frames, s.conversations) for s in said.samples] == [
        (s.each, s.frames, s.conversations) for s in measured.samples
    ]
    ours = first_packs(recipe(mine=SourceConfig(dataset="my_clips:Stated")), 2)
    theirs = first_packs(recipe(mine=SourceConfig(dataset="my_clips:Clips")), 2)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.ids, b.ids)


def test_lengths_are_kept_under_their_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    first = stated(version="1").index()
    calls = sys.modules["my_clips"].Stated.calls
    calls.clear()
    assert stated(version="1").index() == first
    assert calls == [], "neither lengths nor records are asked for"
    stated(version="2").index()
    assert calls[0] == "lengths"
    (kept, _) = sorted((folder / "cache" / "timeviper" / "lengths").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    kept.write_text(kept.read_text()[:-20])
    calls.clear()
    assert stated(version="1").index() == first
    assert calls[0] == "lengths", "what is not whole is asked for anew"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 4}, r"Stated.lengths\(\) states 4 samples, but __len__ says 5"),
        ({"duration": 9.0}, r"record\(0\) has media\[0\] of 2 s, where lengths said 9 s; mend lengths\(\)"),
        (
            {"text": 99},
            r"record\(0\) has conversations\[0\] of type chat with 23 bytes of text, where lengths said chat",
        ),
        ({"text": 6}, r"lengths: sample 0: texts\[0\].answer is 6 bytes of 6; text counts the question, too"),
        ({"duration": "long"}, r"sample 0: media\[0\].duration is 'long'; it must be a number above 0"),
        ({"duration": -1.0}, r"media\[0\].duration is -1.0"),
        ({"duration": float("nan")}, r"media\[0\].duration is nan"),
    ],
)
def test_lengths_that_lie_are_found_at_the_start(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stated(**options).index()


def test_lengths_that_lie_where_nobody_looked_skip_the_sample_with_the_reason(folder: Path) -> None:
    """Kept under a version, they are not compared again at the start; reading notices."""
    dataset = stated(version="3")
    planned = dataset.index().samples[1]
    dataset.record("1", planned)
    lies = replace(planned, conversations=(replace(planned.conversations[0], text_bytes=500),))
    with pytest.raises(ValueError, match=r"record\(1\) has conversations\[0\] .* where lengths said chat with 500"):
        dataset.record("1", lies)
    with pytest.raises(ValueError, match=r"record\(1\) has 1 media \(video\), where lengths said 0"):
        dataset.record("1", replace(planned, media="none"))
    assert dataset.record("1", replace(planned, duration=1.0))["media"][0]["duration"] == 1.0
