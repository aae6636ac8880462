"""Parquet files and folders of Hugging Face's `datasets`, made here as its documentation describes them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import image, put, samples, talk, video

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


def put_parquet(path: Path, rows: list[dict[str, Any]], schema: Any = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def put_arrow(path: Path, rows: list[dict[str, Any]], schema: Any = None, each: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, each)
    return path


def written(source: Path, out: Path) -> dict[str, bytes]:
    """The media of the shards that are made of a source, by key and member; the shards pass the check."""
    write_shards(read_manifest(source).samples, out)
    assert {problem.kind for problem in check_shards(out).problems} <= {"duplicate", "near-duplicate"}
    found = {}
    for shard in load_index(out):
        content = shard.path.read_bytes()
        for sample in shard.samples:
            for member, (offset, size, _) in sample.members.items():
                if member != "json":
                    found[f"{sample.key} {member}"] = content[offset : offset + size]
    return found


def test_paths_and_captions(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.jpg")
    rows = [{"file": "a.mp4", "text": "A dog.", "views": 7}, {"file": "b.jpg", "text": "A ring.", "views": None}]
    found = samples(put_parquet(tmp_path / "x.parquet", rows))
    assert [talk(one)[0][1][1] for one in found.values()] == ["A dog.", "A ring."]
    assert [one["media"][0]["type"] for one in found.values()] == ["video", "image"]
    assert found["a"]["views"] == 7


def embedded(count: int, named: bool) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": image() + bytes([i]), "path": f"{i}.jpg" if named else None}, "messages": TURNS}
        for i in range(count)
    ]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("put_as", [put_parquet, put_arrow])
def test_files_in_cells_are_written_byte_for_byte(tmp_path: Path, put_as: Any, named: bool) -> None:
    """More rows than are decoded at once, several blocks, names or none: then the first bytes tell the type."""
    rows = embedded(40, named)
    schema = pa.schema(
        [("image", FILE), ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))]
    )
    options = {"row_group_size": 17} if put_as is put_parquet else {"each": 17}
    source = put_as(tmp_path / f"x.{'parquet' if put_as is put_parquet else 'arrow'}", rows, schema, **options)
    found = written(source, tmp_path / "out")
    assert [*found.values()] == [row["image"]["bytes"] for row in rows]
    assert {name.split(" ")[1] for name in found} == {"jpg"}
    again = write_shards(read_manifest(source).samples, tmp_path / "out")
    assert again.kept == 40


def test_several_columns_of_files(tmp_path: Path) -> None:
    """As they are read side by side, none is decoded anew for the other."""
    rows = [
        {
            "video": {"bytes": video(i % 3), "path": f"{i}.mp4"},
            "images": [{"bytes": image(), "path": None}] * 2,
            "caption": "x",
        }
        for i in range(20)
    ]
    schema = pa.schema([("video", FILE), ("images", pa.list_(FILE)), ("caption", pa.string())])
    found = written(put_parquet(tmp_path / "x.parquet", rows, schema), tmp_path / "out")
    assert len(found) == 60
    assert [v for name, v in found.items() if name.endswith("mp4")] == [video(i % 3) for i in range(20)]


def test_bare_bytes_and_paths_without_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put_parquet(tmp_path / "a.parquet", [{"mp4": video(), "caption": "Dog.", "key": "00", "status": "success"}])
    assert [*written(tmp_path / "a.parquet", tmp_path / "out").values()] == [video()]
    schema = pa.schema([("video", FILE), ("caption", pa.string())])
    rows = [{"video": {"bytes": None, "path": "a.mp4"}, "caption": "Dog."}]
    assert list(samples(put_parquet(tmp_path / "b.parquet", rows, schema))) == ["a"]
    mixed = [*rows, {"video": {"bytes": video(), "path": "gone.mp4"}, "caption": "Cat."}]
    found = written(put_parquet(tmp_path / "c.parquet", mixed, schema), tmp_path / "mixed")
    assert len(found) == 2


def test_the_bytes_of_named_files_are_not_read_to_learn_what_rows_say(tmp_path: Path) -> None:
    """The pages of the files are damaged: only writing notices."""
    rows = embedded(8, named=True)
    source = put_parquet(tmp_path / "x.parquet", rows, compression="none", use_dictionary=False)
    raw = source.read_bytes()
    meta = pq.ParquetFile(source).metadata.row_group(0)
    column = next(c for i in range(meta.num_columns) if (c := meta.column(i)).path_in_schema == "image.bytes")
    at = column.data_page_offset
    source.write_bytes(raw[:at] + b"\xff" * column.total_compressed_size + raw[at + column.total_compressed_size :])
    found = read_manifest(source).samples
    assert len(found) == 8
    with pytest.raises(ShardError, match="row 0 of block 0 cannot be read"):
        write_shards(found, tmp_path / "out")
    (tmp_path / "a.jpg").write_bytes(image())
    good = {"__key__": "good", "jpg": tmp_path / "a.jpg", "json": {"messages": TURNS}}
    done = write_shards([*found, good], tmp_path / "out", skip=True)
    assert (done.samples, len(done.left_out)) == (1, 8)


def test_a_saved_data_set(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    saved = tmp_path / "saved"
    for split, texts in {"train": ["x", "y", "z"], "test": ["t"]}.items():
        rows = [{"video": str(tmp_path / "a.mp4"), "caption": text} for text in texts]
        put_arrow(saved / split / "data-00000-of-00001.arrow", rows)
        put_arrow(saved / split / "left-over.arrow", rows)
        (saved / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (saved / split / "dataset_info.json").write_text('{"features": {}}')
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    manifest = read_manifest(saved)
    assert (manifest.form, len(manifest.samples)) == ("arrow", 4)
    assert [json.loads(s["json"])["split"] for s in manifest.samples] == ["train", "train", "train", "test"]
    assert len(read_manifest(saved, only=["split=train"]).samples) == 3
    assert len(read_manifest(saved / "test").samples) == 1
    for splits in ('["train", "gone"]', '["train", "../saved"]', "3"):
        (saved / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
        with pytest.raises(ManifestError, match=r"names splits .* that are not all folders there"):
            read_manifest(saved)
    (saved / "test" / "state.json").write_text('{"_data_files": [{"filename": "../train/left-over.arrow"}]}')
    with pytest.raises(ManifestError, match=r"lists no data files of its folder"):
        read_manifest(saved / "test")


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    put(tmp_path / "hub", "a.mp4")
    for name in ("train-00000-of-00003", "train-00001-of-00003", "test-00000-of-00001"):
        rows = [{"video": str(tmp_path / "hub/a.mp4"), "question": "Who?", "answer": name}]
        put_parquet(tmp_path / "hub" / "data" / f"{name}.parquet", rows)
    (tmp_path / "hub" / "README.md").write_text("card")
    manifest = read_manifest(tmp_path / "hub", "arrow")
    assert [json.loads(s["json"])["split"] for s in manifest.samples] == ["test", "train", "train"]
    assert any("pieces of the set are not there" in note and "train (2 of 3)" in note for note in manifest.notes)


def test_classes_have_their_names_and_rare_types_their_plain_values(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    features = {"answer": {"names": ["Ann", "Bob"], "_type": "ClassLabel"}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {
        "video": pa.array(["a.mp4"]).dictionary_encode(),
        "question": pa.array(["Who?"], pa.large_string()),
        "answer": pa.array([1]),
        "taken": pa.array([datetime.datetime(2024, 5, 1)]),
        "start": pa.array([datetime.timedelta(seconds=0.5)], pa.duration("ms")),
        "end": pa.array([1.5], pa.float32()),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(said), tmp_path / "x.parquet")
    (found,) = samples(tmp_path / "x.parquet").values()
    assert talk(found)[0][1] == ["Who?", "Bob"]
    assert (found["media"][0]["start"], found["media"][0]["end"]) == (0.5, 1.5)
    assert found["taken"] == "2024-05-01T00:00:00"


@pytest.mark.parametrize(
    "turns",
    [
        TURNS,
        json.dumps(TURNS),
        {"role": ["user", "assistant"], "content": ["Who?", "Ann."]},
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}],
    ],
)
def test_turns_in_every_form_that_tables_keep_them(tmp_path: Path, turns: Any) -> None:
    put(tmp_path, "a.mp4")
    (found,) = samples(put_parquet(tmp_path / "x.parquet", [{"video": "a.mp4", "conversations": turns}])).values()
    assert talk(found)[0][1] == ["Who?", "Ann."]


def test_instructions_and_moments_in_rows(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"videos": ["a.mp4"], "instruction": "Who?", "input": "", "output": "Ann."}]
    (found,) = samples(put_parquet(tmp_path / "x.parquet", rows)).values()
    assert talk(found)[0][1] == ["Who?", "Ann."]
    rows = [{"video_id": "a", "query": "it runs", "timestamps": None, "start": 0.0, "end": 1.0}]
    (found,) = samples(put_parquet(tmp_path / "y.parquet", rows)).values()
    assert talk(found)[0][0] == "when"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"video": 3, "caption": "x"}], "its column video is int64; files are text"),
        ([{"video": [1.5], "caption": "x"}], "its column video is list<.*double>; files are text"),
        ([{"video": "a.mp4", "caption": True}], "its column caption is bool; it must be text"),
        (
            [{"video": "a.mp4", "question": "?", "answer": {"a": "b"}}],
            "its column answer is struct<.*; it must be text",
        ),
        ([{"video": "a.mp4", "messages": 3}], "its column messages is int64; it must be a list of turns"),
        ([{"video": "a.mp4", "messages": "[1"}], "x.parquet, row 0: not valid JSON"),
        (
            [{"video": b"?", "caption": "x"}],
            "row 0: .*x.parquet, block 0, row 0, video is no video by its name or its first",
        ),
        ([{"video": "a.mp4", "caption": "x", "info": {"raw": b"x"}}], "its info has bytes, .*--ignore info"),
        ([{"video": "gone.mp4", "caption": "x"}], "row 0: there is no file"),
        ([{"video": "a.mp4", "views": 3}], "row 0: says nothing"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    put(tmp_path, "a.mp4")
    with pytest.raises(ManifestError, match=message):
        read_manifest(put_parquet(tmp_path / "x.parquet", rows))


def test_a_column_that_is_ignored_may_have_any_type(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "caption": "x", "image": 7, "thumbnail": {"bytes": image(), "path": None}}]
    schema = pa.schema([("video", pa.string()), ("caption", pa.string()), ("image", pa.int64()), ("thumbnail", FILE)])
    source = put_parquet(tmp_path / "x.parquet", rows, schema)
    manifest = read_manifest(source, ignore=["image"])
    assert len(manifest.samples) == 1
    assert any("thumbnail (files)" in line for line in manifest.fields)


def test_one_damaged_file_does_not_lose_the_others(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"video": str(tmp_path / "a.mp4"), "caption": "x"}]
    for name in ("a", "b", "c", "d"):
        put_parquet(tmp_path / "set" / f"{name}.parquet", rows)
    raw = (tmp_path / "set" / "b.parquet").read_bytes()
    (tmp_path / "set" / "b.parquet").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "set" / "c.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    manifest = read_manifest(tmp_path / "set", partial=True)
    assert len(manifest.samples) == 2
    assert [u.where for u in manifest.unusable] == ["b.parquet", "c.parquet"]
    assert "is not whole, or no Parquet file" in manifest.unusable[0].problem
    assert "run git lfs pull" in manifest.unusable[1].problem


def test_an_arrow_file_that_is_cut_short(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    source = put_arrow(tmp_path / "x.arrow", [{"video": "a.mp4", "caption": "x" * 500}] * 50)
    raw = source.read_bytes()
    for size in (len(raw) // 2, 100, 3, 0):
        source.write_bytes(raw[:size])
        with pytest.raises(ManifestError, match=r"is not whole, or no Arrow file|holds no sample"):
            read_manifest(source)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    source = put_parquet(tmp_path / "x.parquet", [{"video": "a.mp4", "caption": "x"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ManifestError, match=r"pip install 'timeviper\[parquet\]'"):
        read_manifest(source)
