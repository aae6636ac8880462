"""Folders as download tools leave them, tars as other machines pack them, and names that only look the same."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from own_data import ROLL, image, put, put_json, put_lines, put_tar, samples, srt, talk, ttml, video, vtt

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.formats import beside, folder, tars, timed_text
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.pool import write_shards

ENGLISH = [(0.0, 1.0, "It starts."), (1.0, 2.0, "It stops.")]
GERMAN = [(0.0, 1.0, "Es beginnt."), (1.0, 2.0, "Es endet.")]
NFC = unicodedata.normalize("NFC", "Café ü 가.mp4")
NFD = unicodedata.normalize("NFD", NFC)


def notes(source: Path) -> set[str]:
    """What is said of a source, without the places."""
    return {note.rpartition(" (")[0] for note in read_manifest(source).notes}


def said(found: dict[str, Any]) -> list[str]:
    return [segment["text"] for segment in found["segments"]]


# --- folders --------------------------------------------------------------------------------------------


def test_a_folder_of_a_download_tool(tmp_path: Path) -> None:
    """Title with dots and an id, captions in three languages, thumbnails, descriptions, a playlist's own files."""
    stem = "Part 1.2: fold & cut [dQw4w9WgXcQ]"
    put(tmp_path, f"{stem}.mp4", f"{stem}.f137.mp4", f"{stem}.jpg", f"{stem}.0.jpg", f"{stem}.mp4.jpg", "All [PL1].jpg")
    for language, cues in {"en": ENGLISH, "en-orig": ROLL, "de": GERMAN}.items():
        (tmp_path / f"{stem}.{language}.vtt").write_text(vtt(cues), "utf-8")
    info = {"id": "dQw4w9WgXcQ", "title": "Part 1.2", "language": "en-US", "chapters": None, "duration": 2}
    put_json(tmp_path / f"{stem}.info.json", info)
    put_json(tmp_path / "All [PL1].info.json", {"_type": "playlist"})
    for name in (f"{stem}.description", f"{stem}.live_chat.json", f"{stem}.en.json3", "archive.txt", "README.md"):
        (tmp_path / name).write_text("x")
    (found,) = samples(tmp_path).values()
    assert said(found) == ["It starts.", "It stops."]
    assert found["info"] == {"id": "dQw4w9WgXcQ", "title": "Part 1.2", "language": "en-US"}
    others = beside.OTHERS.format("en", "de, en-orig")
    unread = beside.UNREAD.format(".json3")
    assert notes(tmp_path) == {folder.THUMBNAIL, folder.STREAM, folder.LEFT, beside.INFO_USED, others, unread}
    write_shards(read_manifest(tmp_path).samples, tmp_path / "out")
    assert check_shards(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("names", "info", "taken"),
    [
        (["en", "de"], {}, "en"),
        (["en", "de"], {"language": "de"}, "de"),
        (["de-orig", "en", "fr"], {}, "de-orig"),
        (["de-DE", "en"], {"language": "de"}, "de-DE"),
        (["", "fr"], {}, ""),
        (["fr", "fr.forced"], {}, "fr"),
        (["English", "German"], {}, "English"),
        (["zh-Hans", "zh-Hant"], {"language": "zh"}, "zh-Hans"),
    ],
)
def test_which_language_is_taken(tmp_path: Path, names: list[str], info: dict[str, str], taken: str) -> None:
    put(tmp_path, "a.mp4")
    for name in names:
        (tmp_path / f"a.{name}.srt".replace("..", ".")).write_text(srt([(0.0, 1.0, f"In {name}.")]))
    if info:
        put_json(tmp_path / "a.info.json", info)
    assert said(samples(tmp_path)["a"]) == [f"In {taken}."]
    assert any("captions in several languages" in note for note in notes(tmp_path))


def test_a_transcriber_leaves_one_text_in_every_form(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4")
    segments = [{"id": 0, "start": a, "end": b, "text": f" {t}", "tokens": [1]} for a, b, t in ENGLISH]
    whisper = {"text": "It starts. It stops.", "segments": [*segments, {"start": 2, "end": 2, "text": ""}]}
    put_json(tmp_path / "a.json", whisper | {"language": "en"})
    put_json(tmp_path / "b.json", whisper)
    for ending, content in {"vtt": vtt(ENGLISH), "srt": srt(ENGLISH), "txt": "It starts.\nIt stops.\n"}.items():
        (tmp_path / f"a.{ending}").write_text(content)
    (tmp_path / "a.tsv").write_text("start\tend\ttext\n")
    found = samples(tmp_path)
    assert [kind for kind, _ in talk(found["a"])] == ["dense", "segment", "segment"]
    assert found["b"]["segments"] == [{"start": a, "end": b, "text": t} for a, b, t in ENGLISH]
    assert notes(tmp_path) == {beside.SAME, beside.TRANSCRIPT}


def test_names_that_keep_the_ending_of_the_video(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "a.jpg", "v1.mp4", "v1.5.mp4", "c.MP4")
    put_json(tmp_path / "a.mp4.json", {"caption": "A video."})
    (tmp_path / "a.jpg.txt").write_text("A picture.")
    (tmp_path / "v1.en.SRT").write_text(srt(ENGLISH))
    (tmp_path / "v1.5.TTML").write_text(ttml(GERMAN))
    (tmp_path / "c.TXT").write_text("Capitals.")
    found = samples(tmp_path)
    assert {key: talk(f)[0][1][1][:10] for key, f in found.items() if "segments" not in f} == {
        "a": "A picture.",
        "a-2": "A video.",
        "c": "Capitals.",
    }
    assert (said(found["v1"])[0], said(found["v1_5"])[0]) == ("It starts.", "Es beginnt.")


def test_a_json_that_says_nothing_leaves_room_for_the_text(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4")
    put_json(tmp_path / "a.json", {"caption": None, "views": 3})
    put_json(tmp_path / "b.json", {"question": "Who?", "answer": "A dog."})
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("A ring.")
    found = samples(tmp_path)
    assert talk(found["a"])[0][1][1] == "A ring."
    assert talk(found["b"]) == [(None, ["Who?", "A dog."])]
    assert notes(tmp_path) == {beside.TEXT_UNUSED}


def test_what_a_folder_cannot_mean_is_said_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", *(f"frames/{i}.jpg" for i in range(4)))
    (tmp_path / "a.vtt").write_text(vtt(ENGLISH))
    (tmp_path / "a.srt").write_text(srt(GERMAN))
    (tmp_path / "b.ass").write_text("x")
    put_json(tmp_path / "c.info.json", {"section_start": 60})
    (tmp_path / "c.vtt").write_text(vtt(ENGLISH))
    (tmp_path / "d.fr.vtt").write_text(vtt(ENGLISH))
    (tmp_path / "d.de.vtt").write_text(vtt(GERMAN))
    (tmp_path / "gone.en.vtt").write_text(vtt(ENGLISH))
    put_json(tmp_path / "e.json", {"caption": "x"})
    with pytest.raises(ManifestError) as error:
        read_manifest(tmp_path)
    for problem, words in zip(
        error.value.problems,
        [
            "a.mp4: has a.vtt, a.srt beside it, which differ",
            "b.mp4: has none of",
            "c.mp4: its info.json says that it is a section, from 60 s on",
            "d.mp4: has d.de.vtt, d.fr.vtt beside it; keep one",
            "frames: holds 4 pictures without a text each",
            "gone.en.vtt: belongs to no video",
        ],
        strict=True,
    ):
        assert problem.startswith(words)
    assert "b.ass alone cannot be used" in error.value.problems[1]


def test_200_clean_videos_in_a_folder_give_no_note(tmp_path: Path) -> None:
    """Of each kind of text, with the names that people give."""
    texts = {"json": '{"caption": "A dog."}', "txt": "A dog.", "vtt": vtt(ENGLISH), "srt": srt(GERMAN)}
    texts |= {"ttml": ttml(ENGLISH), "en.vtt": vtt(ENGLISH), "de-DE.srt": srt(GERMAN), "mp4.txt": "A dog."}
    for i in range(200):
        stem = ("clip {}", "v{}.5 [x-y]", "Ünï {}", "f{}.take2", "a.f{}")[i % 5].format(i)
        (tmp_path / f"{stem}.mp4").touch()
        ending = list(texts)[i % len(texts)]
        (tmp_path / f"{stem}.{ending}").write_text(texts[ending], "utf-8")
    manifest = read_manifest(tmp_path)
    assert (len(manifest.samples), manifest.notes) == (200, [])


# --- tars -----------------------------------------------------------------------------------------------


def meta(**more: Any) -> bytes:
    return json.dumps({"caption": "A kettle.", "status": "success", "error_message": None} | more).encode()


MAC = b"\0\5\26\7\0\2\0\0Mac OS X        "


def test_a_tar_from_a_mac(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = [("./._.DS_Store", MAC), ("./.DS_Store", b"Bud1"), ("./._sub", MAC)]
    for key in ("000", "sub/001"):
        head, _, base = key.rpartition("/")
        members += [(f"./{head}/._{base}.mp4", MAC), (f"./{key}.mp4", video())]
        members += [(f"./{head}/._{base}.json", MAC), (f"./{key}.json", meta())]
    members += [("__MACOSX/._000.mp4", MAC), ("sub/Thumbs.db", b"x"), ("Icon\r", b""), ("README", b"x")]
    put_tar(tmp_path / "in" / "00.tar", *members)
    assert list(samples(tmp_path / "in")) == ["000", "sub_001"]
    assert notes(tmp_path / "in") == {tars.OF_SYSTEMS, tars.NO_KEY}
    own = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    put_tar(tmp_path / "own" / "00.tar", *members[:5], ("./000.json", json.dumps(own).encode()))
    for name in ("._00.tar", "._00.idx.json", ".DS_Store"):  # as on a disk that macOS has written to
        (tmp_path / "own" / name).write_bytes(MAC)
    index_shards(tmp_path / "own")
    assert [s.key for s in load_index(tmp_path / "own")[0].samples] == ["./000"]
    assert [p.kind for p in check_shards(tmp_path / "own").problems] == []


@pytest.mark.parametrize(
    "members",
    [
        [("k.json", b'{"caption": "A kettle.", "similarity": NaN, "url": null}'), ("k.mp4", b"")],
        [("k.json", meta(caption=None)), ("k.mp4", b""), ("k.txt", b"A kettle.\n")],
        [("k.json", meta(caption="")), ("k.mp4", b""), ("k.txt", b"A kettle.")],
        [("k.JSON", meta()), ("k.MP4", b"")],
        [("k.Txt", b"\xef\xbb\xbfA kettle."), ("k.Mp4", b"")],
        [("k.mp4", b""), ("k.mp4.json", meta())],
    ],
    ids=["NaN", "null", "empty", "capitals", "mixed capitals", "two endings"],
)
def test_tars_of_downloaders(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    put_tar(tmp_path / "x.tar", *((n, d or video()) for n, d in members))
    (found,) = samples(tmp_path / "x.tar").values()
    assert talk(found)[0][1][1] == "A kettle."
    assert found["media"][0]["member"] == "mp4"


def test_keys_with_dots(tmp_path: Path) -> None:
    clip, text = video(), b"A kettle."
    put_tar(
        tmp_path / "x.tar",
        *(("22.05.json", meta()), ("22.05.mp4", clip), ("22.06.JSON", meta()), ("22.06.mp4", clip)),
        *(("d.1/v1.5.0.jpg", image()), ("d.1/v1.5.1.jpg", image()), ("d.1/v1.5.txt", text)),
        *(("a.meta.json", b"[1]"), ("a.json", meta()), ("a.0.jpg", image()), ("a.1.jpg", image())),
        *(("b.mp4", clip), ("b.txt", text), ("b.5.mp4", clip), ("b.5.txt", text)),
    )
    found = samples(tmp_path / "x.tar")
    assert {key: [m["member"] for m in f["media"]] for key, f in found.items()} == {
        "22_05": ["mp4"],
        "22_06": ["mp4"],
        "d_1_v1_5": ["0.jpg", "1.jpg"],
        "a": ["0.jpg", "1.jpg"],
        "b": ["mp4"],
        "b_5": ["mp4"],
    }


def test_files_of_a_sample_need_not_follow_each_other(tmp_path: Path) -> None:
    """As `tar cf x.tar *.mp4 *.json` has them."""
    put_tar(tmp_path / "x.tar", ("a.mp4", video()), ("b.mp4", video()), ("a.json", meta()), (f"{'b'}.json", meta()))
    assert list(samples(tmp_path / "x.tar")) == ["a", "b"]


def test_timed_captions_in_a_tar_are_used(tmp_path: Path) -> None:
    put_tar(
        tmp_path / "x.tar",
        *(("a.mp4", video()), ("a.en.vtt", vtt(ROLL[:3]).encode()), ("a.de.vtt", vtt(GERMAN).encode())),
        *(("a.info.json", b'{"title": "A"}'), ("b.mp4", video()), ("b.SRT", srt(ENGLISH).encode()), ("b.txt", b"All.")),
    )
    found = samples(tmp_path / "x.tar")
    assert said(found["a"]) == ["first you fold the paper", "then you cut the corner"]
    assert [kind for kind, _ in talk(found["b"])] == ["caption", "dense", "segment", "segment"]
    assert notes(tmp_path / "x.tar") == {timed_text.ROLLED, beside.OTHERS.format("en", "de"), beside.INFO_USED}


def test_failed_downloads_are_counted_and_left_out(tmp_path: Path) -> None:
    failed = meta(status="failed_to_download", error_message="404")
    put_tar(tmp_path / "X.TAR", ("0.json", failed), ("1.json", meta()), ("1.mp4", video()), ("2.json", failed))
    manifest = read_manifest(tmp_path / "X.TAR")
    assert [s["__key__"] for s in manifest.samples] == ["1"]
    assert manifest.notes == [f"{tars.FAILED} (2: X.TAR, sample '0'; X.TAR, sample '2')"]
    put_tar(tmp_path / "y.tar", ("1.json", meta()))
    with pytest.raises(ManifestError, match="has no media"):
        read_manifest(tmp_path / "y.tar")


def test_bounds_in_a_tar_are_of_the_video_that_its_file_was_cut_from(tmp_path: Path) -> None:
    """As clips of large corpora have them; they are kept and named, and the file is taken whole."""
    put_tar(tmp_path / "x.tar", ("a.mp4", video()), ("a.json", meta(start=61.5, end=63.5, clips=[[61.5, 63.5]])))
    manifest = read_manifest(tmp_path / "x.tar")
    assert json.loads(manifest.samples[0]["json"])["media"] == [{"type": "video", "member": "mp4"}]
    assert "start" in manifest.fields[1]
    assert any(note.startswith("start is not used (1 of 1 entries)") for note in manifest.notes)
    write_shards(manifest.samples, tmp_path / "out")
    assert check_shards(tmp_path / "out").problems == []


def test_200_clean_samples_of_a_tar_give_no_note(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for i in range(200):
        key = f"{i % 3}/{i:09d}"
        text = {"json": meta(key=f"{i}"), "txt": b"A kettle.", "vtt": vtt(ENGLISH).encode()}
        kinds = (("json", "txt"), ("json",), ("txt",), ("vtt",), ("json", "cls"))[i % 5]
        members += [(f"{key}.mp4", b"x"), *((f"{key}.{kind}", text.get(kind, b"3")) for kind in kinds)]
    put_tar(tmp_path / "x.tar", *members)
    manifest = read_manifest(tmp_path / "x.tar")
    assert (len(manifest.samples), manifest.notes) == (200, [])


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "there"), [(NFC, NFD), (NFD, NFC)], ids=["old Mac", "new Mac"])
def test_names_that_look_the_same_are_the_same(tmp_path: Path, written: str, there: str) -> None:
    """In a list, in a folder of that name, without an ending, and beside each other; the key is the same for both."""
    put(tmp_path / there[:-4], there)
    name = f"{written[:-4]}/{written}"
    for entry in ({"video": name, "caption": "x"}, {"video": name[:-4], "query": "x", "start": 0, "end": 1}):
        assert list(samples(put_lines(tmp_path / "x.jsonl", entry))) == [f"{NFC[:-4]}_{NFC[:-4]}".replace(" ", "_")]
    (tmp_path / there[:-4] / f"{written[:-4]}.en.vtt").write_text(vtt(ENGLISH))
    assert said(next(iter(samples(tmp_path / there[:-4]).values())))[0] == "It starts."
    put_tar(tmp_path / "x.tar", (there, video()), (f"{written[:-4]}.json", meta()))
    assert len(samples(tmp_path / "x.tar")) == 1


def test_names_that_look_the_same_twice(tmp_path: Path) -> None:
    put(tmp_path, NFC, NFD)
    entries = [{"video": name, "caption": "x"} for name in (NFC, NFD)]
    assert len(samples(put_lines(tmp_path / "x.jsonl", *entries))) == 2, "each as it is written"
    half = "Cafe\u0301 \u00fc \uac00.mp4"
    with pytest.raises(ManifestError, match="could be any of 2 files of that look"):
        read_manifest(put_lines(tmp_path / "y.jsonl", {"video": half, "caption": "x"}))


def test_names_from_windows_and_in_capitals(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4")
    (entry,) = samples(put_lines(tmp_path / "x.jsonl", {"video": "clips\\a.mp4", "caption": "x"})).values()
    assert entry["media"][0]["member"] == "mp4"
    for name, message in {"clips/A.mp4": "but there is a.mp4", "..\\..\\clips\\a.mp4": "leaves --media-root"}.items():
        with pytest.raises(ManifestError, match=message):
            read_manifest(put_lines(tmp_path / "x.jsonl", {"video": name, "caption": "x"}), media_root=tmp_path)


def test_addresses_of_media(tmp_path: Path) -> None:
    put(tmp_path, "a b.mp4")
    own = {"video": f"file://{tmp_path}/a%20b.mp4", "caption": "x"}
    (entry,) = samples(put_lines(tmp_path / "x.jsonl", own)).values()
    assert entry["media"][0]["member"] == "mp4"
    far = put_lines(tmp_path / "y.jsonl", {"video": "https://host/a.mp4?sig=abc", "caption": "x"})
    with pytest.raises(ManifestError, match=r"line 1: https://host/a.mp4\?... is an address; .*download it"):
        read_manifest(far)


# --- frames, and marks that are text ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [[f"f/{i}.jpg" for i in range(3)], "f", ["f"]])
def test_frames_without_a_rate_are_refused_with_what_to_do(tmp_path: Path, value: Any) -> None:
    put(tmp_path, *(f"f/{i}.jpg" for i in range(3)))
    with pytest.raises(ManifestError, match=r"line 1: .*has 3 frames, but nothing says at which rate .*give fps"):
        read_manifest(put_lines(tmp_path / "x.jsonl", {"video": value, "caption": "x"}))


def test_many_numbered_pictures_in_a_tar_are_said_to_be_pictures(tmp_path: Path) -> None:
    for count, said_of in ((7, set()), (8, {tars.PICTURES})):
        frames = [(f"a.{i:04d}.jpg", image()) for i in range(count)]
        put_tar(tmp_path / f"{count}.tar", *frames, ("a.txt", b"A ring."))
        assert notes(tmp_path / f"{count}.tar") == said_of


def test_marks_in_texts_that_are_not_a_persons_turn_are_text(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "a.srt").write_text(srt([(0.0, 1.0, "The <video> tag"), (1.0, 2.0, "and <image>.")]))
    assert said(samples(tmp_path)["a"]) == ["The <video> tag", "and <image>."]
    put_tar(tmp_path / "x.tar", ("b.mp4", video()), ("b.txt", b"The <video> tag."))
    assert talk(samples(tmp_path / "x.tar")["b"])[0][1][1] == "The <video> tag."
    entry = {"video": "a.mp4", "query": "the <image> tag is shown", "start": 0, "end": 1}
    with pytest.raises(ManifestError, match=r"line 1: .*placeholders for \['image'\].*&lt;image&gt;"):
        read_manifest(put_lines(tmp_path / "y.jsonl", entry))
