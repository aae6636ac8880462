"""The writer of shards: whatever stops it, what it leaves is whole, and what continues ends in the same bytes."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from own_data import put, put_lines, video
from tree import ROOT
from webdataset.writer import TarWriter

from timeviper.datamodules.build import load_index
from timeviper.datamodules.formats.manifest import read_manifest
from timeviper.datamodules.shards import pool
from timeviper.datamodules.shards.index import index_shard
from timeviper.datamodules.shards.pool import Written, write_shards
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.shards.writer import TarSlice, write_shard


def entries(folder: Path, count: int) -> Path:
    """A JSONL file of `count` samples of three real clips, each under a name of its own."""
    put(folder, "0.mp4", "1.mp4", "2.mp4")
    for i in range(3, count):
        (folder / f"{i}.mp4").hardlink_to(folder / f"{i % 3}.mp4")
    rows = ({"video": f"{i}.mp4", "caption": f"clip {i}", "id": f"c{i}"} for i in range(count))
    return put_lines(folder / "m.jsonl", *rows)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "timeviper.cli", "shards", "write", str(source), str(out), *options]


def start(*args: Any) -> subprocess.Popen[str]:
    """The writer as a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*args), cwd=ROOT, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return out


def test_a_shard_is_what_webdataset_writes(tmp_path: Path) -> None:
    sample = {"__key__": "сон/a", "mp4": video(), "json": b'{"messages": []}', "0.txt": b"x"}
    expected = io.BytesIO()
    with TarWriter(expected, encoder=False, mtime=0) as tar:
        tar.write(sample)
    (tmp_path / "clip.mp4").write_bytes(video())
    (tmp_path / "other").write_bytes(b"skip" + video() + b"skip")
    for payload in (video(), tmp_path / "clip.mp4", TarSlice(tmp_path / "other", 4, len(video()))):
        got = io.BytesIO()
        from timeviper.datamodules.shards.writer import _add

        with tarfile.open(fileobj=got, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, Path("x.tar"), sample | {"mp4": payload})
        assert got.getvalue() == expected.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_and_workers_make_the_same_shards(tmp_path: Path, workers: int) -> None:
    samples = read_manifest(entries(tmp_path, 19)).samples
    whole = write_shards(samples, tmp_path / "whole", 4)
    assert (whole.shards, whole.samples, whole.kept) == (5, 19, 0)
    told: list[Written] = []
    parts = [
        write_shards(samples, tmp_path / "parts", 4, workers=workers, part=(i, 3), progress=told.append)
        for i in (3, 1, 2)
    ]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert [(p.shards, p.samples) for p in parts] == [(1, 4), (2, 8), (2, 7)]
    assert sum(p.bytes for p in parts) == whole.bytes > 0
    assert all(told[i].samples <= 8 for i in range(len(told)))
    again = write_shards(samples, tmp_path / "parts", 4, workers=workers)
    assert (again.samples, again.kept, again.bytes) == (19, 19, 0)
    nothing = write_shards(samples, tmp_path / "parts", 4, part=(6, 6))
    assert nothing.shards == 0
    assert [len(s.samples) for s in load_index(tmp_path / "parts")] == [4, 4, 4, 4, 3]


def test_kept_shards_must_hold_the_same_samples(tmp_path: Path) -> None:
    samples = [dict(s) for s in read_manifest(entries(tmp_path, 6)).samples]
    write_shards(samples, tmp_path / "out", 4)
    before = content(tmp_path / "out")
    clip = tmp_path / "longer.mp4"
    clip.write_bytes(video() + b"x")
    for change, message in [
        ({"json": samples[0]["json"].replace(b"clip", b"CLIP")}, "c0.json has changed"),
        ({"mp4": clip}, "c0.mp4 has changed"),
        ({"__key__": "d"}, "'c0' where 'd' should be"),
        ({"cls": b"1"}, "'c0' has json, mp4, not cls, json, mp4"),
    ]:
        with pytest.raises(ValueError, match=f"already there with other samples .{message}"):
            write_shards([samples[0] | change, *samples[1:]], tmp_path / "out", 4)
    with pytest.raises(ValueError, match="it holds 4 samples, not 3"):
        write_shards(samples, tmp_path / "out", 3)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_media_keep_only_their_own_shards_back(tmp_path: Path, workers: int) -> None:
    samples = [dict(s) for s in read_manifest(entries(tmp_path, 12)).samples]
    for name, data in {"empty": b"", "text": b"no video" * 99}.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
    for i, name in {1: "empty", 2: "text", 9: "text"}.items():
        samples[i] |= {"mp4": tmp_path / f"{name}.mp4"}
    with pytest.raises(ShardError) as error:
        write_shards(samples, tmp_path / "out", 4, workers=workers)
    message = str(error.value)
    for part in (
        "2 shards",
        "'c1': c1.mp4 is empty",
        f"({tmp_path}/empty.mp4)",
        "'c2'",
        "shard-00002.tar, sample 'c9'",
    ):
        assert part in message
    assert sorted(content(tmp_path / "out")) == ["shard-00001.idx.json", "shard-00001.tar"]
    (tmp_path / "empty.mp4").write_bytes(video())
    (tmp_path / "text.mp4").write_bytes(video())
    write_shards(samples, tmp_path / "out", 4, workers=workers)
    assert len(load_index(tmp_path / "out")) == 3


def test_a_file_that_is_cut_while_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    sample = {"__key__": "a", "json": b"{}", "mp4": TarSlice(tmp_path / "a", 50, 100)}
    with pytest.raises(OSError, match=r"cannot write shard .*unexpected end of data; nothing of it was kept"):
        write_shard(tmp_path / "out" / "x.tar", [sample])
    assert list((tmp_path / "out").iterdir()) == []


def kill_and_continue(tmp_path: Path, times: int, shards: int) -> None:
    """Kill a writer at random moments, every other time the parent alone, and let the last one finish."""
    source, out, draw = entries(tmp_path, 2 * shards), tmp_path / "killed", random.Random(times)
    write_shards(read_manifest(source).samples, tmp_path / "whole", 2)
    options = ("--samples-per-shard", "2", "--workers", "2")
    for i in range(times):
        before = shards_in(out)
        writer = start(source, out, *options)
        new = draw.randrange(shards // (2 * times))
        while writer.poll() is None and shards_in(out) < before + new:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.02))
        assert writer.poll() is None, "it must be killed at work"
        (os.killpg if i % 2 else os.kill)(writer.pid, signal.SIGKILL)
        writer.communicate()  # returns when the last process of the group has gone
        for tar in out.glob("*.tar"):
            index_shard(tar)
    assert 0 < shards_in(out) < shards
    assert "were there" in finish(start(source, out, *options))
    assert content(out) == content(tmp_path / "whole")


def shards_in(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


def test_a_killed_writer_continues_to_the_same_shards(tmp_path: Path) -> None:
    kill_and_continue(tmp_path, 3, 48)


@pytest.mark.slow
def test_a_writer_killed_twenty_times_continues_to_the_same_shards(tmp_path: Path) -> None:
    kill_and_continue(tmp_path, 20, 400)


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    source, out = entries(tmp_path, 4000), tmp_path / "out"
    writer = start(source, out, "--samples-per-shard", "8", "--workers", "2")
    while not list(out.glob("*.idx.json")):
        assert writer.poll() is None
        time.sleep(0.01)
    os.killpg(writer.pid, signal.SIGINT)  # as a terminal does: every process gets it
    said, _ = writer.communicate(timeout=30)
    assert writer.returncode == 130, said
    assert "Traceback" not in said
    assert "stopped; the finished shards are whole" in said
    assert "the same command continues" in said
    left = [path.name for path in out.iterdir()]
    assert not [name for name in left if name.endswith(".tmp")]
    assert len(left) < 1000
    for tar in out.glob("*.tar"):
        index_shard(tar)


def test_a_worker_that_is_killed_ends_the_writing_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = read_manifest(entries(tmp_path, 8)).samples
    monkeypatch.setattr(pool, "_write", _killed)
    with pytest.raises(OSError, match="was killed, perhaps for want of memory"):
        write_shards(samples, tmp_path / "out", 4, workers=2)
    monkeypatch.undo()
    write_shards(samples, tmp_path / "out", 4, workers=2)
    assert len(load_index(tmp_path / "out")) == 2


def _killed(job: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_command_tells_how_far_it_is(tmp_path: Path) -> None:
    source = entries(tmp_path, 10)
    first = finish(start(source, tmp_path / "out", "--samples-per-shard", "4", "--part", "2/2"))
    assert "10 samples, format json; part 2/2: 4" in first
    assert "4/4 samples  1/1 shards" in first
    assert "MB/s" in first
    second = finish(start(source, tmp_path / "out", "--samples-per-shard", "4"))
    assert "10/10 samples  3/3 shards  4 samples were there" in second
    assert "\r" not in second, "no terminal, no live line"
