"""A share of the media is kept from training: whole, the same everywhere; and several sources share a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import put_lines, video

from timeviper.cli.write_shards import WriteOptions, write
from timeviper.datamodules.build import load_index
from timeviper.datamodules.formats.held_out import cut


def options(**more: Any) -> WriteOptions:
    return WriteOptions(workers=1, samples_per_shard=64, **more)


def media(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(video())
    return folder


def files(folder: Path) -> set[str]:
    return {s.key.rpartition("-")[0] or s.key for shard in load_index(folder) for s in shard.samples}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=200), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_all_samples_of_a_file_are_on_one_side(numbers: list[int], share: float) -> None:
    samples = [{"__key__": str(i), "json": b"{}", "mp4": Path(f"/x/{n}.mp4")} for i, n in enumerate(numbers)]
    kept, held = cut(samples, share)
    assert len(kept) + len(held) == len(samples)
    assert not {s["mp4"] for s in kept} & {s["mp4"] for s in held}
    moved = [{**s, "mp4": Path("/elsewhere") / s["mp4"].name} for s in samples]
    assert [s["__key__"] for s in cut(moved, share)[1]] == [s["__key__"] for s in held]


def test_the_command_writes_both_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media(tmp_path / "in", 20)
    rows = [{"video": f"{i % 20}.mp4", "question": f"{i}?", "answer": "!"} for i in range(40)]
    source = put_lines(tmp_path / "in" / "x.jsonl", *rows)
    for _ in range(2):
        assert write(source, tmp_path / "out", options(held_out=tmp_path / "val", share=0.2))
        said = capsys.readouterr().out
        assert "40 samples, format json; part 1/1: 40" in said
    kept, held = load_index(tmp_path / "out"), load_index(tmp_path / "val")
    sizes = [sum(len(shard.samples) for shard in shards) for shards in (kept, held)]
    assert sum(sizes) == 40
    assert 0 < sizes[1] < 20
    assert sizes[1] % 2 == 0, "both questions about a video"


def test_a_share_that_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media(tmp_path / "in", 1)
    source = put_lines(tmp_path / "in" / "x.jsonl", {"video": "0.mp4", "caption": "x"})
    assert write(source, tmp_path / "out", options(held_out=tmp_path / "val"))
    assert "no medium of these 1 samples is among the share of 0.01" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds out all 1 samples"):
        write(source, tmp_path / "out", options(held_out=tmp_path / "val", share=1.0))
    with pytest.raises(ValueError, match="another folder than OUT"):
        write(source, tmp_path / "out", options(held_out=tmp_path / "out"))


def test_several_sources_in_one_folder(tmp_path: Path) -> None:
    media(tmp_path / "in", 2)
    for i, name in enumerate(("a", "b")):
        rows = [{"video": f"{i}.mp4", "caption": "x"}, {"video": "gone.mp4", "caption": "x"}]
        source = put_lines(tmp_path / "in" / f"{name}.jsonl", *rows)
        assert write(source, tmp_path / "out", options(name=name, skip_unusable=True))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [n for n in names if n.endswith((".tar", ".jsonl"))] == [
        "a-00000.tar",
        "b-00000.tar",
        "unusable-a.jsonl",
        "unusable-b.jsonl",
    ]
    assert sum(len(shard.samples) for shard in load_index(tmp_path / "out")) == 2
    with pytest.raises(ValueError, match="--name is of letters"):
        write(tmp_path / "in" / "a.jsonl", tmp_path / "out", options(name="../a"))
