"""Timed captions as sites, converters and editors leave them: each line said once, none lost, in every form."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from own_data import ROLL, Row, put, samples, srt, talk, ttml, vtt

from timeviper.datamodules.formats.manifest import read_manifest
from timeviper.datamodules.formats.rollup import Cue, said_once
from timeviper.datamodules.formats.timed_text import (
    DOUBLED,
    JOINED,
    NO_LENGTH,
    ROLLED,
    STREAM_CLOCK,
    TimedText,
    parse_timed_text,
)
from timeviper.datamodules.shards.schema import SchemaError


def parse(name: str, text: str) -> TimedText:
    return parse_timed_text(name, text.encode())


def rows(found: TimedText) -> list[Row]:
    return [(s["start"], s["end"], s["text"]) for s in found.segments]


WRITERS = {"a.vtt": vtt, "a.srt": srt, "a.ttml": ttml}

SAID = [(0.16, 2.32, "first you fold the paper"), (2.32, 5.2, "then you cut the corner"), (5.2, 8.0, "and open it")]

YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.160 --> 00:00:02.310 align:start position:0%
 
first<00:00:00.480><c> you</c><00:00:00.880><c> fold</c><00:00:01.280><c> the</c><00:00:01.600><c> paper</c>

00:00:02.310 --> 00:00:02.320 align:start position:0%
first you fold the paper
 

00:00:02.320 --> 00:00:05.190 align:start position:0%
first you fold the paper
then<00:00:02.800><c> you</c><00:00:03.200><c> cut</c><00:00:03.680><c> the</c><00:00:04.000><c> corner</c>

00:00:05.190 --> 00:00:05.200 align:start position:0%
then you cut the corner
 

00:00:05.200 --> 00:00:08.000 align:start position:0%
then you cut the corner
and<00:00:05.600><c> open</c><00:00:06.000><c> it</c>

"""


@pytest.mark.parametrize("end_of_line", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("stripped", [False, True], ids=["as it is", "by an editor that strips spaces"])
def test_automatic_captions_of_youtube(end_of_line: str, stripped: bool) -> None:
    text = "\n".join(line.rstrip() for line in YOUTUBE.split("\n")) if stripped else YOUTUBE
    found = parse("a.en.vtt", text.replace("\n", end_of_line))
    assert rows(found) == SAID
    assert found.notes == (ROLLED,)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("blank", ["", " \n"], ids=["plain", "blank line above"])
def test_captions_that_roll_up_in_each_form(name: str, blank: str) -> None:
    cues = [(a, b, t if "\n" in t else blank + t) for a, b, t in ROLL]
    found = parse(name, WRITERS[name](cues))
    assert (rows(found), found.notes) == (SAID, (ROLLED,))


@pytest.mark.parametrize("name", WRITERS)
def test_captions_that_come_word_by_word(name: str) -> None:
    """Live captions (CEA-608), one cue a word."""
    words = "the pan is hot\nnow add oil"
    cues = [
        (0.0, 0.5, "the"),
        (0.5, 1.0, "the pan"),
        (1.0, 2.0, "the pan is hot"),
        (2.0, 2.5, "the pan is hot\nnow"),
        (2.5, 3.0, words),
        (3.0, 4.0, "now add oil\nand wait"),
    ]
    assert rows(parse(name, WRITERS[name](cues))) == [
        (0.0, 2.0, "the pan is hot"),
        (2.0, 3.0, "now add oil"),
        (3.0, 4.0, "and wait"),
    ]


def test_three_lines_and_a_line_that_is_said_twice() -> None:
    cues = [(0, 1, "a"), (1, 2, "a\nno"), (2, 3, "a\nno\nno"), (3, 4, "no\nno\nb"), (9, 10, "b\nlater")]
    cues = [Cue(float(a), float(b), tuple(t.split("\n"))) for a, b, t in cues]
    said, rolls = said_once(cues)
    assert rolls
    assert [" ".join(cue.lines) for cue in said] == ["a", "no", "no", "b", "later"]
    assert [cue.start for cue in said] == [0.0, 1.0, 2.0, 3.0, 9.0]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("held", [True, False], ids=["with cues that hold", "without"])
def test_captions_that_roll_up_in_joined_lines(name: str, held: bool) -> None:
    """Converters put the two lines of a cue into one; others leave out the cues that hold."""
    for joined in ("\n", " "):
        cues = [(a, b, t.replace("\n", joined)) for a, b, t in ROLL if held or b - a > 0.05]
        found = parse(name, WRITERS[name](cues))
        assert [(round(a, 1), round(b, 1), t) for a, b, t in rows(found)] == [
            (round(a, 1), round(b, 1), t) for a, b, t in SAID
        ]
        assert found.notes == (ROLLED,)


def test_capitals_and_points_that_come_when_a_line_moves_up() -> None:
    cues = [
        (0.0, 1.0, "hi my name is luke"),
        (1.0, 2.0, "Hi. My name is Luke,\nand my goal"),
        (2.0, 3.0, "And my goal\nis"),
    ]
    for joined in ("\n", " "):
        found = parse("a.srt", srt([(a, b, t.replace("\n", joined)) for a, b, t in cues]))
        assert [row[2].casefold() for row in rows(found)] == ["hi. my name is luke,", "and my goal", "is"]


def test_times_of_words_tell_old_lines_from_new_ones() -> None:
    """One line that stays is enough; a refrain whose words have times is sung again."""
    cues = [(0.0, 2.0, "Hello<00:00:01.000><c> there</c>"), (2.0, 4.0, "Hello there"), (4.0, 6.0, "Next line")]
    assert rows(parse("a.vtt", vtt(cues))) == [(0.0, 4.0, "Hello there"), (4.0, 6.0, "Next line")]
    song = [(float(i), i + 1.0, f"La<00:00:0{i}.500> la la") for i in range(4)]
    assert [row[2] for row in rows(parse("a.vtt", vtt(song)))] == ["La la la"] * 4


def test_captions_sent_anew_each_second_are_one() -> None:
    cues = [(float(i), i + 1.0, "A dog runs." if i < 3 else "It stops.") for i in range(5)]
    assert rows(parse("a.vtt", vtt(cues))) == [(0.0, 3.0, "A dog runs."), (3.0, 5.0, "It stops.")]


def test_what_is_said_twice_stays_twice() -> None:
    """A refrain, and words that begin as those before them, in captions that do not roll."""
    cues = [
        (0, 2, "Oh no"),
        (2, 4, "Oh no"),
        (4, 6, "He runs"),
        (6, 8, "He runs\naway"),
        (8, 10, "Far"),
        (12, 13, "Far"),
    ]
    for name, writer in WRITERS.items():
        found = parse(name, writer([(float(a), float(b), t) for a, b, t in cues]))
        assert (len(found.segments), found.notes) == (6, ())


def test_200_clean_files_of_each_form_are_read_as_they_are() -> None:
    """No note, no line lost or joined: one to three lines, gaps and none, refrains here and there."""
    rng = random.Random(0)
    vocabulary = ("a", "the", "dog", "cat", "runs", "stops", "then", "now", "far away,", "Oh!", "it", "12", "7", "last")
    for most in (1, 3) * 100:
        cues: list[Row] = []
        at = 0.0
        for _ in range(rng.randint(1, 40)):
            start = at + rng.choice([0.0, 0.0, 0.04, 0.5, 3.0])
            at = round(start + rng.uniform(0.3, 6.0), 3)
            lines = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 8))) for _ in range(rng.randint(1, most))]
            if cues and rng.random() < 0.1:
                lines = cues[-1][2].split("\n")  # said again
            cues.append((round(start, 3), at, "\n".join(lines)))
        wanted = [(a, b, t.replace("\n", " ")) for a, b, t in cues]
        for name, writer in WRITERS.items():
            found = parse(name, writer(cues))
            assert (rows(found), found.notes) == (wanted, ())


# --- cues that are not as the standard has them -------------------------------------------------------


def test_an_empty_line_inside_a_cue() -> None:
    cues = [(0.0, 1.0, "Above\n\nbelow"), (1.0, 2.0, "2\n\n\nmore"), (2.0, 3.0, "End")]
    for name in ("a.vtt", "a.srt"):
        found = parse(name, WRITERS[name](cues))
        assert rows(found) == [(0.0, 1.0, "Above below"), (1.0, 2.0, "2 more"), (2.0, 3.0, "End")]
        assert found.notes == (JOINED,)
    blocks = (
        "WEBVTT",
        "00:00.000 --> 00:01.000\nOne",
        "NOTE not said",
        "STYLE\n::cue {}",
        "00:01.0 --> 00:02.0\nNOTE two",
    )
    note = "\n\n".join(blocks)
    assert [row[2] for row in rows(parse("a.vtt", note))] == ["One", "NOTE two"]


def test_cues_without_an_empty_line_between_them() -> None:
    for text in (
        "1\n00:00:00,000 --> 00:00:01,000\nOne\n2\n00:00:01,000 --> 00:00:02,000\nTwo",
        "1\n00:00:00,000 --> 00:00:01,000\nOne\n \n2\n00:00:01,000 --> 00:00:02,000\nTwo\n\n3\n\n",
    ):
        assert rows(parse("a.srt", text)) == [(0.0, 1.0, "One"), (1.0, 2.0, "Two")]
    text = "WEBVTT\n00:00.000 --> 00:01.000\nOne\n00:01.000 --> 00:02.000\nTwo\n\nintro\n00:02.000 --> 00:03.000\nThree"
    assert [row[2] for row in rows(parse("a.vtt", text))] == ["One", "Two", "Three"]


def test_cues_that_no_player_shows_are_left_out_and_doubled_ones_taken_once() -> None:
    cues = [(0.0, 1.0, "One"), (1.0, 1.0, "Flash"), (1.0, 2.0, "Two"), (1.0, 2.0, "Two"), (3.0, 4.0, "Three")]
    for name, writer in WRITERS.items():
        found = parse(name, writer(cues))
        assert [row[2] for row in rows(found)] == ["One", "Two", "Three"]
        assert found.notes == (NO_LENGTH, DOUBLED)


def test_arrows_and_tags_that_are_text() -> None:
    text = srt([(0.0, 1.0, "A --> B"), (1.0, 2.0, "the <video> tag <b>and</b> 1 < 2 <3"), (2.0, 3.0, "One<br/>Two")])
    assert [row[2] for row in rows(parse("a.srt", text))] == ["A --> B", "the <video> tag and 1 < 2 <3", "One Two"]
    text = vtt([(0.0, 1.0, "the &lt;video&gt; tag <lang en>and</lang> <i.x>all</i>")])
    assert rows(parse("a.vtt", text)) == [(0.0, 1.0, "the <video> tag and all")]


def test_other_encodings_headers_and_names() -> None:
    wanted = [(0.0, 1.0, "Häuser, 家")]
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        for name, writer in WRITERS.items():
            assert rows(parse_timed_text(name, writer(wanted).encode(codec))) == wanted
    assert rows(parse("a.srt", vtt(wanted))) == wanted, "WebVTT under another name"
    hls = "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n00:00.000 --> 00:01.000\nx\n\nWEBVTT\n\n"
    assert parse("a.vtt", hls).notes == (STREAM_CLOCK,)


def test_words_of_ttml_that_light_up_are_one_cue() -> None:
    """As inner time tags of WebVTT: the paragraph says when it is shown."""
    text = (
        '<tt><body><div><p begin="1s" end="3s">first<span begin="0.5s"> you</span>\n <span begin="1s">fold</span><br/>'
        '<span begin="1s" end="2s">it</span></p></div></body></tt>'
    )
    assert rows(parse("a.ttml", text)) == [(1.0, 3.0, "first you fold it")]


@pytest.mark.parametrize("text", ["1\n00:00:01,000 --> 00:00:00,500\nx", "1\n00:00:01,000 ==> 00:00:02,000\nx"])
def test_times_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(SchemaError, match=r"a.srt: (segments\[0\] runs|line 1)"):
        parse("a.srt", text)


# --- whole folders ------------------------------------------------------------------------------------


def test_a_rolling_file_makes_each_line_once_in_a_sample(tmp_path: Path) -> None:
    put(tmp_path, "talk.mp4", "b.mp4")
    (tmp_path / "talk.en.vtt").write_text(YOUTUBE, "utf-8")
    (tmp_path / "b.srt").write_text(srt(ROLL[:3]), "utf-8")
    found = samples(tmp_path)
    (_, (_, dense)), *parts = talk(found["talk"])
    assert dense.count("fold the paper") == 1
    assert [kind for kind, _ in parts] == ["segment"] * 3
    assert read_manifest(tmp_path).notes == [f"{ROLLED} (2: b.mp4; talk.mp4)"]
