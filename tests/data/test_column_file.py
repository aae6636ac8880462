"""The index of a folder: brought to a node once, never believed when it is wrong, and made anew where shards are."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from index_makers import shards
from range_server import serving
from safetensors.numpy import load_file
from shard_helpers import flip_bit, picture, raw_tar
from tree import ROOT, Run

from timeviper.datamodules.build import load_index
from timeviper.datamodules.shards import column_file, folder, node_files
from timeviper.datamodules.shards.column_file import FILE, HEADER, in_memory, mapped, open_file, write_columns
from timeviper.datamodules.shards.column_join import columns_of, join
from timeviper.datamodules.shards.columns import NAMES
from timeviper.datamodules.shards.index import index_path, index_shard, index_shards, read_index, write_index
from timeviper.datamodules.shards.index_file import ShardIndex
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two pictures, indexed."""
    place = tmp_path_factory.mktemp("made") / "data"
    write_shards([picture(i) for i in range(12)], place, samples_per_shard=2)
    index_shards(place)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """These few samples are treated as millions would be."""
    monkeypatch.setattr(folder, "SMALL", 0)


def tar(place: Path, number: int) -> Path:
    return place / f"shard-{number:05d}.tar"


def keys(index) -> list[str]:
    return [record.key for shard in index for record in shard.samples]


@settings(max_examples=15, deadline=None)
@given(made=shards())
def test_a_file_gives_back_what_was_written(made: list[ShardIndex], tmp_path_factory) -> None:
    place = tmp_path_factory.mktemp("file")
    columns = columns_of(made, f"{place}/")
    file = write_columns(place / FILE, [columns])
    parts = [columns.shards(i, i + 1) for i in range(len(columns))]
    assert file.read_bytes() == write_columns(place / "again", parts).read_bytes()
    with open_file(file) as opened:
        for found in (mapped(file, "x", "mend", f"{place}/"), in_memory(opened.read, "x", "mend", f"{place}/")):
            assert [shard.samples for shard in found] == [shard.samples for shard in made]
            assert found.locations() == [f"{place}/{shard.name}" for shard in made]
            assert all(found.arrays[n].ctypes.data % found.arrays[n].itemsize == 0 for n in NAMES)
    there = load_file(file)  # any tool opens it
    assert all(np.array_equal(there[n], columns.arrays[n], equal_nan=there[n].dtype.kind == "f") for n in NAMES)


@pytest.mark.parametrize("size", [0, 7, 100, HEADER - 1, HEADER, HEADER + 10, -1])
def test_a_file_that_is_cut_short_is_refused(place: Path, size: int, large: None, tmp_path: Path) -> None:
    os.truncate(place / FILE, size if size >= 0 else (place / FILE).stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{FILE} is cut short.*; run `timeviper shards index {place}`"):
        load_index(place, tmp_path / "cache")
    assert index_shards(place) == [place / FILE]
    assert len(load_index(place, tmp_path / "cache")) == 6


def test_another_version_and_damage_are_told_apart(place: Path, tmp_path: Path) -> None:
    file = place / FILE
    whole = file.read_bytes()
    for before, after, said in (
        (b'"version":"1"', b'"version":"7"', "is 'timeviper index' of version 7, this program reads version 1"),
        (b'"format":"timeviper index"', b'"format":"someone\'s index"', 'is "someone\'s index" of version 1'),
        (b'"key":{"dtype"', b'"kei":{"dtype"', "cannot be read: its header is cut or damaged"),
        (b'"shape":[6]', b'"shape":[7]', "cannot be read: its header is cut or damaged"),
        (b"picture003", b"picture033", r"is damaged or was changed \(key: wrong checksum\)"),
    ):
        assert len(before) == len(after)
        assert before in whole
        file.write_bytes(whole.replace(before, after, 1))
        with pytest.raises(ValueError, match=rf"index {file} {said}.*; run `timeviper shards index {place}`"):
            load_index(place, tmp_path / "cache")
    file.write_bytes(b"no header" * 9999)
    with pytest.raises(ValueError, match="no file of this kind"):
        load_index(place, tmp_path / "cache")


def test_half_of_the_shards_in_the_index(place: Path, tmp_path: Path, large: None, caplog) -> None:
    """The others have indexes of their own, or are named."""
    whole = load_index(place, tmp_path / "cache")
    write_columns(place / FILE, [whole.shards(0, 2), whole.shards(4, 5)])
    assert load_index(place, tmp_path / "cache") == whole
    assert [r.message for r in caplog.records] == [
        f"3 shards of {place} are not in its {FILE}: their own indexes are read now; `timeviper shards index` does it "
        "once for all"
    ]
    assert load_index(place, tmp_path / "cache") == whole
    assert len(caplog.records) == 1, "said once, by whoever does it"
    index_path(tar(place, 3)).unlink()
    with pytest.raises(ValueError, match=r"shard-00003\.tar has no index; run `timeviper shards index"):
        load_index(place, tmp_path / "cache")
    assert index_shards(place) == [index_path(tar(place, 3)), place / FILE]


def test_a_shard_that_is_gone_is_missed(place: Path, tmp_path: Path) -> None:
    tar(place, 2).unlink()
    with pytest.raises(ValueError, match=r"shard-00002.tar is missing, though its index"):
        load_index(place)
    index_path(tar(place, 2)).unlink()
    with pytest.raises(ValueError, match=rf"1 shards are missing, though {place / FILE} knows them: shard-00002.tar;"):
        load_index(place)
    assert index_shards(place) == [place / FILE]
    assert len(load_index(place)) == 5


def test_two_indexes_of_one_tar(place: Path, tmp_path: Path) -> None:
    """The one that was written last counts; one file that tells of a tar twice is refused."""
    one = tar(place, 1)
    changed = read_index(one)
    record = changed.samples[0]
    newer = ShardIndex(changed.location, changed.bytes, (record,))
    index = write_index(newer)
    time = (place / FILE).stat().st_mtime_ns
    os.utime(index, ns=(time + 1, time + 1))
    assert load_index(place)[1].samples == (record,)
    os.utime(place / FILE, ns=(time + 2, time + 2))
    assert load_index(place)[1].samples == changed.samples
    whole = load_index(place)
    write_columns(place / FILE, [whole, whole.shards(2, 3)])
    with pytest.raises(ValueError, match=r"tells of shard-00002.tar twice; delete it and run"):
        load_index(place)


def test_an_index_that_changes_underneath(place: Path, tmp_path: Path, large: None) -> None:
    """Whoever has it open goes on with what it was, to the last byte; whoever comes later sees what it is."""
    before = load_index(place, tmp_path / "cache")
    wanted = [*load_index(place, tmp_path / "other")]
    os.truncate(place / FILE, HEADER + 64)  # a bus error for those who had mapped this very file
    assert [*before] == wanted
    (place / FILE).write_bytes(os.urandom(1 << 20))
    assert [*before] == wanted
    (place / FILE).unlink()
    assert index_shards(place) == [place / FILE]
    write_shards([picture(100)], place, name="zz")
    index_shards(place)
    assert keys(load_index(place, tmp_path / "cache")) == [*keys(wanted), "picture100"]
    assert [*before] == wanted


def test_a_copy_that_somebody_cuts_is_made_again(place: Path, tmp_path: Path, large: None) -> None:
    wanted = [*load_index(place, tmp_path / "cache")]
    (copy,) = (tmp_path / "cache").rglob("*.safetensors")
    os.truncate(copy, 100)
    assert [*load_index(place, tmp_path / "cache")] == wanted
    assert len([*(tmp_path / "cache").rglob("*.safetensors")]) == 1


def test_a_copy_of_another_boot_is_not_believed(place: Path, tmp_path: Path, large: None, monkeypatch) -> None:
    """The machine may have stopped before it was on the disk."""
    wanted = [*load_index(place, tmp_path / "cache")]
    (copy,) = (tmp_path / "cache").rglob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:HEADER].ljust(copy.stat().st_size, b"\0"))
    monkeypatch.setattr(node_files, "BOOT", "another")
    assert [*load_index(place, tmp_path / "cache")] == wanted
    assert [*(tmp_path / "cache").rglob("*.safetensors")] != [copy]
    assert not copy.exists()


def test_file_systems_that_cannot_map_or_keep(place: Path, tmp_path: Path, large: None, monkeypatch, caplog) -> None:
    wanted = [*load_index(place, tmp_path / "cache")]
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    assert [*load_index(place, no_folder)] == wanted
    assert "cannot be kept for all ranks of this node" in caplog.text
    (place / FILE).unlink()
    assert [*load_index(place, no_folder)] == wanted

    def refuse(*_, **__) -> mmap.mmap:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(column_file.mmap, "mmap", refuse)
    assert [*load_index(place, tmp_path / "cache")] == wanted


def test_one_new_shard_reads_no_other(place: Path) -> None:
    """All that the others consist of is spoilt, but for the size of the tars: nobody looks."""
    wanted = keys(load_index(place))
    for number in range(6):
        tar(place, number).write_bytes(bytes(tar(place, number).stat().st_size))
        index_path(tar(place, number)).unlink()
    write_shards([picture(50)], place, name="aa")  # before the others in order
    index_path(place / "aa-00000.tar").unlink()
    assert index_shards(place) == [index_path(place / "aa-00000.tar"), place / FILE]
    assert keys(load_index(place)) == ["picture050", *wanted]
    assert index_shards(place) == []


def test_bad_tars_do_not_keep_others_from_being_indexed(made: Path, place: Path, cli: Run) -> None:
    for file in (*place.glob("*.json"), place / FILE):
        file.unlink()
    record = index_shard(tar(place, 1)).samples[0]
    flip_bit(tar(place, 1), record.members["json"].offset - 512 + 148, 1)
    raw_tar(tar(place, 4), [("a.json", b"{}"), ("b.png", b"x")])
    (place / "sub").mkdir()
    raw_tar(place / "sub/x.tar", [])
    done = cli("shards", "index", str(place), "--workers", "2", check=False)
    assert done.returncode == 1
    assert "3 of 7 shards cannot be indexed, the others are:" in done.stderr
    assert all(f"{name}" in done.stderr for name in ("shard-00001.tar", "shard-00004.tar", "sub/x.tar"))
    good = [0, 2, 3, 5]
    assert [index_path(tar(place, n)).exists() for n in range(6)] == [n in good for n in range(6)]
    with open_file(place / FILE) as file:
        assert in_memory(file.read, "x", "", f"{place}/").names() == [tar(place, n).name for n in good]
    with pytest.raises(ValueError, match=r"shard-00001\.tar has no index"):
        load_index(place)
    times = {n: index_path(tar(place, n)).stat().st_mtime_ns for n in good}
    for number in (1, 4):
        shutil.copy(tar(made, number), tar(place, number))
    shutil.rmtree(place / "sub")
    assert cli("shards", "index", str(place)).stdout.endswith(f"3 indexes in {place}\n")  # two shards, one folder
    assert {n: index_path(tar(place, n)).stat().st_mtime_ns for n in good} == times, "what was done stays done"
    assert (place / FILE).read_bytes() == (made / FILE).read_bytes()


def test_a_single_bad_tar_is_raised_as_it_is(tmp_path: Path) -> None:
    raw_tar(tmp_path / "x.tar", [])
    with pytest.raises(ShardError, match=r"x\.tar: has no samples"):
        index_shards(tmp_path)


def test_a_folder_without_the_file_is_read_and_kept_for_the_node(place: Path, tmp_path: Path, large, caplog) -> None:
    wanted = [*load_index(place, tmp_path / "cache")]
    (place / FILE).unlink()
    found = load_index(place, tmp_path / "cache")
    assert [*found] == wanted
    assert f"{place} has no {FILE}: their own indexes are read now" in caplog.text
    for index in place.glob("*.idx.json"):  # same size, same time: only who reads them notices
        stat = index.stat()
        index.write_bytes(bytes(stat.st_size))
        os.utime(index, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [*load_index(place, tmp_path / "cache")] == wanted


def test_globs_and_folders_together(place: Path, tmp_path: Path, large: None) -> None:
    whole = [*load_index(place, tmp_path / "cache")]
    assert [*load_index(f"{place}/shard-0000[24].tar", tmp_path / "cache")] == [whole[2], whole[4]]
    shutil.copytree(place, tmp_path / "data2")
    both = load_index(f"{tmp_path}/data*/shard-00000.tar", tmp_path / "cache")
    assert both.locations() == [f"{tmp_path}/data/shard-00000.tar", f"{tmp_path}/data2/shard-00000.tar"]
    assert both[1].samples == whole[0].samples
    assert join([both, both.shards(0, 0)]) == both


RANK = """
import sys
from timeviper.datamodules.remote.listing import load_remote
found = load_remote(sys.argv[1], sys.argv[2])
print(len(found), found.samples, found.record(7).key)
"""


def test_two_nodes_of_three_ranks_each_fetch_the_index_once(made: Path, tmp_path: Path, monkeypatch) -> None:
    """In processes of their own that begin together. A later run looks whether it has changed, and no more."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with serving(made) as server:
        server.delay = 0.05
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, server.url, str(tmp_path / node)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for node, _ in product(("a", "b"), range(3))
        ]
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
        assert said == ["6 12 picture007\n"] * 6
        size = (made / FILE).stat().st_size
        wanted = Counter({f"bytes=0-{HEADER - 1}": 2, f"bytes={HEADER}-{size - 1}": 2})
        assert Counter(span for _, span in server.requests) == wanted
        assert server.sent == {f"/{FILE}": 2 * size}
        server.forget()
        assert len(load_index(server.url, tmp_path / "a")) == 6
        assert [span for _, span in server.requests] == [f"bytes=0-{HEADER - 1}"]


def test_an_old_index_with_a_word_for_a_number_is_named(place: Path) -> None:
    (place / FILE).unlink()
    shard = read_index(tar(place, 0))
    write_index(replace(shard, samples=(replace(shard.samples[0], keyframe_spacing="often"), shard.samples[1])))  # type: ignore
    with pytest.raises(ValueError, match=r"keyframe_spacing 'often', which is no number.*timeviper shards index"):
        load_index(place)
    assert len(index_shards(place)) == 2
    assert len(load_index(place)) == 6


def test_metadata_of_the_header_stands_for_the_content(place: Path) -> None:
    raw = (place / FILE).read_bytes()[8:HEADER]
    said = json.loads(raw)["__metadata__"]
    assert {name for name in said if name.startswith("crc32.")} == {f"crc32.{name}" for name in NAMES}
