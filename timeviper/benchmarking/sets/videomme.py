"""Video-MME: 900 videos of three lengths, three questions each with four options (arXiv 2405.21075).

One Parquet file; `data/<videoID>.mp4` from zips; `subtitle/<videoID>.srt` for 744 of the videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import REPEATS, choice
from timeviper.benchmarking.forms import BARE, LETTER
from timeviper.benchmarking.item import Item, SubtitleRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import unmarked


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _item)


def _item(row: Row) -> Item:
    video = row.text("videoID")
    return choice(
        row.text("question_id"),
        video,
        row.text("question"),
        unmarked(row.texts("options")),
        row.text("answer"),
        labels={
            "duration": (row.text("duration"),),
            "domain": (row.text("domain"),),
            "sub_category": (row.text("sub_category"),),
            "task": (row.text("task_type"),),
        },
        subtitles=SubtitleRef(f"subtitle/{video}.srt"),
    )


VIDEOMME = TestSet(
    name="videomme",
    title="Video-MME",
    task="mcq",
    patterns=("videomme/test-*.parquet", "test-*.parquet", "*.parquet", "test-*.jsonl"),
    read=read,
    download="test-00000-of-00001.parquet, the video zips (videos_chunked_*.zip), subtitle.zip",
    forms={
        "official": Form(
            "{subtitles}\nChoose the best option for this question about the video, and reply with its letter alone: "
            "A, B, C or D.\n{question}\n{options}",
            subtitles="These are subtitles of the video:\n{cues}",
            cue="The best answer is:",
        ),
        "lmms": Form(
            "{subtitles}\nChoose the best option for this question about the video and its subtitles, and reply with "
            f"its letter alone: A, B, C or D.\n{{question}}\n{{options}}\n{LETTER}",
            subtitles="These are subtitles of the video:\n{cues}",
        ),
        "vlmeval": Form(
            "These are frames of a video.\n{subtitles}\nChoose the best option and reply with its letter alone.\n"
            "Question: {question}\n{options}",
            subtitles="These are subtitles of the video:\n{cues}",
            cue="Answer: ",
        ),
        "timeviper": Form(
            "{question}\n{options}\nReply with the letter and the whole text of the best option.",
            option="({letter}) {text}",
            prefix="Best Option: (",
            max_new_tokens=64,
        ),
        "bare": BARE,
    },
    policies={
        "official": Policy(unparsed="dropped"),
        "lmms": Policy(unparsed="wrong"),
        "vlmeval": Policy(unparsed="wrong"),
    },
    counts=Counts(
        videos=900,
        questions=2700,
        by={
            "duration": {"short": 900, "medium": 900, "long": 900},
            "letter": {"A": 677, "B": 735, "C": 684, "D": 604},
        },
    ),
    defects={REPEATS: 10},
    remarks=("A model that always says B scores 27.2.", "156 of the 900 videos have no subtitles."),
    licence="academic research; videos may not be passed on",
)
