"""VDC: five captions of a video, in short, in detail, of background, main object and camera (AuroraCap, 2410.03051).

VDC_1k_captions.jsonl has the references; `<kind>.jsonl` questions that a judge asks about a caption, which are kept for
it: no judge runs unless it is wished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Form, Policy, TestSet, Unread

KINDS = {
    "short": "Describe the video in one sentence.",
    "detailed": "Describe the video in detail: what is to be seen, what happens, and how it is filmed.",
    "background": "Describe the background of the video: the place, the things in it, the light.",
    "main_object": "Describe the main subject of the video: how it looks, what it does, how it moves.",
    "camera": "Describe how the camera films the video: angles, movements, cuts.",
}


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), partial(_items, asked=_questions(path.parent)))


def _questions(folder: Path) -> dict[str, dict[str, list[dict[str, str]]]]:
    """What a judge asks, by kind and video, from the files beside."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for kind in KINDS:
        for path in (folder / f"{kind}.jsonl", folder / f"{kind}_caption.jsonl"):
            for row in rows(path) if path.is_file() else ():
                if isinstance(row, Row):
                    found.setdefault(kind, {}).update({k: v for k, v in row.items() if isinstance(v, list)})
    return found


def _items(row: Row, asked: dict[str, dict[str, list[dict[str, str]]]]) -> Iterator[Item]:
    video = row.text("video_id", "video_name")
    name = video.rpartition(".")[0] if video.lower().endswith(".mp4") else video
    for kind, question in KINDS.items():
        judged = asked.get(kind, {}).get(video, [])
        yield Item(
            f"{name}#{kind}",
            VideoRef(name),
            "caption",
            question,
            answers=(row.text(f"{kind}_caption"),),
            labels={"kind": (kind,)},
            extra={"judge": judged} if judged else {},
        )


VDC = TestSet(
    name="vdc",
    title="VDC",
    task="caption",
    patterns=("VDC_1k_captions.jsonl", "VDC_1k.jsonl", "*captions*.jsonl"),
    beside=tuple(f"{kind}.jsonl" for kind in KINDS),
    read=read,
    download="VDC_1k_captions.jsonl, <kind>.jsonl for a judge, the videos",
    forms={"official": Form("{question}", max_new_tokens=512), "lmms": Form("{question}", max_new_tokens=512)},
    policies={"official": Policy(unparsed="dropped", average="macro", by="kind")},
    remarks=(
        "The official mean leaves out captions that the judge gave 0; VLMEvalKit keeps one question a caption.",
        "Official prompts are drawn without a seed from several: here one a kind.",
        "The score is a judge's (Llama-3.1-8B): without one there are CIDEr and the like alone.",
    ),
    licence="Apache-2.0 for the captions; videos by their collections",
)
