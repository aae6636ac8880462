"""Folders of Megatron-Energon: WebDataset tars, and in `.nv-meta` what their samples are and which split they are of.

    dataset.yaml   sample_type: {__class__: VidQASample}, field_map: {video: mp4, context: json[question], answers: txt}
    split.yaml     split_parts: {train: [shards/00.tar], val: [shards/01.tar]}, exclude: [shards/00.tar/000032]

Samples that code makes (`sample_loader.py`, crude data sets) are not read: no code of a source is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.tars import Members, read_samples, read_text_member
from timeviper.datamodules.formats.text_files import parse_json, read_text
from timeviper.datamodules.shards.schema import SchemaError, media_type
from timeviper.datamodules.shards.writer import TarSlice

META = ".nv-meta"
TYPES = {  # the fields of a sample type, and what they are called here
    "CaptioningSample": {"caption": "caption"},
    "VQASample": {"context": "question", "answers": "answer", "answer_weights": "answer_weights"},
    "VidQASample": {"context": "question", "answers": "answer", "answer_weights": "answer_weights"},
    "MultiChoiceVQASample": {"context": "question", "choices": "options", "correct_choice_idx": "answer_index"},
    "TextSample": {"text": "text"},
}
FILES = ("image", "video", "images", "videos")
EXCLUDED = "samples that split.yaml excludes, left out"
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def read_energon(source: Path) -> Iterator[Entry]:
    """All samples, each with the split of its tar. SchemaError if dataset.yaml does not say how to read them."""
    wanted = _field_map(source)
    split = _yaml(source / META / "split.yaml") if (source / META / "split.yaml").is_file() else {}
    excluded = {name for text in split.get("exclude") or [] for name in _expanded(str(text))}
    parts = split.get("split_parts") or {}
    splits = {name: part for part, texts in parts.items() for text in texts or [] for name in _expanded(str(text))}

    def entry(tar: Path, where: str, key: str, members: Members) -> Entry:
        name = str(tar.relative_to(source))
        if name in excluded or f"{name}/{key}" in excluded:
            return Entry(where, {}, notes=(EXCLUDED,))
        try:
            fields = _fields(tar, members, wanted)
        except SchemaError as error:
            return Entry(where, error)
        of_split = {"split": splits[name]} if name in splits else {}
        files = {f: TarSlice(tar, file.offset, file.size) for f, file in members if media_type(f)}
        return Entry(where, {"key": key.removeprefix("./"), **of_split, **fields}, files)

    yield from read_samples(source, entry)


def _fields(tar: Path, members: Members, wanted: dict[str, str]) -> dict[str, Any]:
    there, fields = dict(members), {}
    for name, place in wanted.items():
        if name in FILES:
            continue
        value = _value(tar, there, place)
        if value is not None:
            fields[name] = value
    if isinstance(answers := fields.get("answer"), list):
        fields["answer"] = _best(answers, fields.pop("answer_weights", None))
    if "text" in fields:
        raise SchemaError("is text alone without a question, which is not trained on here")
    return fields


def _value(tar: Path, there: dict[str, Any], place: str) -> Any:
    """What a field map calls `txt`, or `json[a][b]`."""
    member, *path = re.findall(r"[^\[\]]+", place)
    if member.lower() not in there:
        raise SchemaError(f"has no {member}, which dataset.yaml names; it has {', '.join(sorted(there))}")
    text = read_text_member(tar, member, there[member.lower()])
    if not path and not member.endswith("json"):
        return text.strip()
    value = parse_json(text)
    for step in path:
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SchemaError(f"has no {place}, which dataset.yaml names ({step!r} is not there)") from error
    return value


def _best(answers: list[Any], weights: Any) -> Any:
    """The answer with the greatest weight; without weights all, of which talk takes one if they are alike."""
    if isinstance(weights, list) and len(weights) == len(answers) and answers:
        return answers[max(range(len(answers)), key=lambda i: weights[i])]
    return answers


def _field_map(source: Path) -> dict[str, str]:
    """Our names of a sample's fields, and where they stand in it."""
    said = _yaml(source / META / "dataset.yaml")
    kind = said.get("sample_type", said)
    kind = str(kind.get("__class__") if isinstance(kind, dict) else kind)
    found = said.get("field_map")
    if not isinstance(found, dict):
        raise SchemaError(
            f"its {META}/dataset.yaml has no field_map: its samples are made by code, which is not run here; "
            "--format tars reads its tars by the names of their members"
        )
    if kind not in TYPES:
        raise SchemaError(f"its samples are of type {kind}; known are {', '.join(TYPES)}; --format tars reads its tars")
    unknown = [name for name in found if name not in (*TYPES[kind], *FILES)]
    if unknown:
        raise SchemaError(f"its field_map has {', '.join(unknown)}, which {kind} has not, or which is not read here")
    return {TYPES[kind].get(str(name), str(name)): str(place) for name, place in found.items()}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise SchemaError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise SchemaError(f"{path.name} must be a mapping, got {type(found).__name__}")
    return found


def _expanded(text: str) -> list[str]:
    """The names that `shard_{000..002}.tar` stands for."""
    pieces = BRACES.split(text)
    ranges = [
        [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        for first, last in zip(pieces[1::3], pieces[2::3])
    ]
    return ["".join(p + (c[i] if i < len(c) else "") for i, p in enumerate(pieces[::3])) for c in product(*ranges)]


ENERGON = Format(
    "energon",
    "an Energon data set",
    lambda source: source.is_dir() and (source / META / "dataset.yaml").is_file(),
    read_energon,
    folders=True,
)
