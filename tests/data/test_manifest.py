"""Own data on the way in: what is wrong is said once, with its line, before anything is written."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from own_data import put, put_lines, samples

from timeviper.cli import main as cli
from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import MAX_JSON


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`timeviper args` in this process: exit code, stdout and stderr."""

    def invoke(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["timeviper", *args])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return invoke


def test_unusable_entries_of_own_data_are_all_named(run, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    lines = [
        '{"video": "a.mp4", "messages": []}',
        '{"video": "gone.mp4", "caption": "x"}',
        "{",
        '{"caption": "no media"}',
        '{"image": "a.mp4", "caption": "x"}',
        '{"video": "a.mp4", "conversations": [{"from": "narrator", "value": "x"}]}',
        json.dumps(["a list"]),
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    code, _, err = run("shards", "write", str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
    assert code == 1
    assert "7 unusable" in err
    for number, says in enumerate(
        ["at least one message", "no file", "valid JSON", "no media", "ending", "narrator", "must be an object"], 1
    ):
        assert any(f"line {number}:" in line and says in line for line in err.splitlines()), (number, says, err)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unusable.jsonl"]


def test_media_that_cannot_be_decoded_are_all_named(run, tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"not a video" * 50}.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    lines = [json.dumps({"video": f"{name}.mp4", "caption": "x"}) for name in ("empty", "text")]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    code, _, err = run("shards", "write", str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
    assert code == 1
    assert "empty.mp4 is empty (0 bytes)" in err
    assert "text.mp4 cannot be read as a video or image" in err
    assert "leave them out" in err
    assert not list((tmp_path / "out").iterdir()), "nothing half done stays"


def test_the_forms_of_own_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/a.mp4", "b.JPG"):
        (tmp_path / name).write_bytes(b"")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    entries = [
        {"video": "a.mp4", "conversations": turns},
        {"video": "a.mp4", "caption": "Again."},
        {"video": ["a.mp4", "sub/a.mp4"], "caption": "Both.", "id": "two videos"},
        {"image": "b.JPG", "caption": "Still.", "source": "mine"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    manifest = read_manifest(tmp_path / "m.jsonl")
    first, second, both, image = samples(tmp_path / "m.jsonl").values()
    assert first["conversations"][0]["messages"][0] == {"role": "user", "content": "<video>\nWhat?"}
    assert second["conversations"][0]["type"] == "caption"
    assert [s["__key__"] for s in manifest.samples] == ["a", "a-2", "two_videos", "b"]
    assert [media["member"] for media in both["media"]] == ["0.mp4", "1.mp4"]
    assert manifest.samples[2]["1.mp4"] == tmp_path / "sub/a.mp4"
    assert (image["source"], manifest.samples[3]["jpg"]) == ("mine", tmp_path / "b.JPG")


def test_media_of_own_data_may_lie_anywhere(tmp_path: Path) -> None:
    for folder in ("lists", "films"):
        (tmp_path / folder).mkdir()
    film = tmp_path / "films" / "a.mp4"
    film.write_bytes(b"")
    lines = [json.dumps({"video": where, "caption": "x"}) for where in (str(film), "../films/a.mp4")]
    (tmp_path / "lists" / "m.jsonl").write_text("\n".join(lines))
    absolute, relative = read_manifest(tmp_path / "lists" / "m.jsonl").samples
    assert absolute["mp4"] == film
    assert relative["mp4"].resolve() == film.resolve()
    assert relative["__key__"] == "films_a"
    assert absolute["__key__"].endswith("films_a")


def test_names_with_dots_spaces_and_unicode(tmp_path: Path) -> None:
    names = ["a.b.c.mp4", "a b.mp4", "сон/日本 é.mp4", "-x.mp4", "%d.mp4", "a:b.mp4", "x'\"$(y).mp4", "...mp4"]
    put(tmp_path, *names)
    manifest = read_manifest(put_lines(tmp_path / "m.jsonl", *({"video": n, "caption": n} for n in names)))
    write_shards(manifest.samples, tmp_path / "out")
    assert check_shards(tmp_path / "out").shards == 1
    found = load_index(tmp_path / "out")[0].samples
    assert [s.key for s in found] == ["a_b_c", "a_b", "сон_日本_é", "-x", "_d", "a_b-2", "x_y_", "line-8"]
    assert all(s.frames == 8 for s in found)
    assert manifest.notes == ["1 keys are used more than once; the later ones got a number (a_b-2 ...)"]


def test_keys_stay_apart(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    ids = ["x", "x", "x-2", "x", "x-2"]
    source = put_lines(tmp_path / "m.jsonl", *({"video": "a.mp4", "caption": "y", "id": i} for i in ids))
    assert list(samples(source)) == ["x", "x-2", "x-2-2", "x-3", "x-2-3"]


def test_special_tokens_stay_text(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    text = "<|im_end|>\n<|im_start|>system\n</s> <video> \u202e\\n"
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": text}]
    found = samples(put_lines(tmp_path / "m.jsonl", {"video": "a.mp4", "messages": talk}))
    assert found["a"]["conversations"][0]["messages"][1]["content"] == text


def test_a_line_of_a_gigabyte_is_refused_without_reading_it_into_memory(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    good = json.dumps({"video": "a.mp4", "caption": "x"}).encode()
    with (tmp_path / "m.jsonl").open("wb") as file:
        file.write(good + b'\n{"caption": "')
        file.seek(1 << 30, os.SEEK_CUR)  # a hole: zeros that take no disk
        file.write(b'"}\n{\n' + good)
    tracemalloc.start()
    with pytest.raises(ManifestError, match=rf"2 unusable\n  line 2: is longer than {MAX_JSON} bytes.*\n  line 3: not"):
        read_manifest(tmp_path / "m.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * MAX_JSON


def test_files_of_texts_are_bounded_too(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4")
    for name in ("a.json", "b.ttml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_JSON + 1)
    with pytest.raises(ManifestError, match=r"a.json has \d+ bytes, more than(.|\n)*b.ttml has \d+ bytes, more than"):
        read_manifest(tmp_path)
    with (tmp_path / "m.json").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ManifestError, match=r"read as one list; write it as JSONL.*jq -c"):
        read_manifest(tmp_path / "m.json")


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = put(Path(name), "a.mp4", "b.mp4")
        source = put_lines(folder / "m.jsonl", *({"video": f"{v}.mp4", "caption": "x"} for v in "ab"))
        folder.chmod(0o755)
        (folder / "b.mp4").chmod(0)
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(ManifestError, match=r"1 unusable\n  line 2: .*Permission denied.*b\.mp4"):
                read_manifest(source)
        finally:
            os.seteuid(user)


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ManifestError, match="is a folder; pictures that are frames of a video are named as a folder"):
        read_manifest(put_lines(tmp_path / "m.jsonl", {"video": "a.mp4", "caption": "x"}))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "out"], "there is no nowhere"),
        (["m.jsonl", "out", "--media-root", "nowhere"], "there is no nowhere"),
        (["m.jsonl", "out", "--part", "0/2"], "write I/N with I from 1 to N"),
        (["m.jsonl", "out", "--part", "half"], "write I/N with I from 1 to N"),
        (["m.jsonl", "out", "--format", "llava"], "there is no format 'llava'"),
        ([".", "out"], "out lies in .,"),
        ([".", "."], "lies in ."),
    ],
)
def test_a_command_that_cannot_be(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(put(tmp_path, "a.mp4"))
    put_lines(tmp_path / "m.jsonl", {"video": "a.mp4", "caption": "x"})
    code, _, err = run("shards", "write", *args)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) <= 2
    assert not (tmp_path / "out").exists()
