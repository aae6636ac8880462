"""A run's own held-out questions as a test set, so that `timeviper eval` and a capsule can be held together.

Single questions about single videos or pictures of local shards, read where they lie in the tars. Intervals are
scored as windows, everything else word by word.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.registry import Loaded
from timeviper.benchmarking.testset import Form, Policy, TestSet, Unread
from timeviper.config import Recipe
from timeviper.datamodules.build import load_sources
from timeviper.datamodules.plan import drawn
from timeviper.datamodules.remote.member_file import SampleFiles
from timeviper.datamodules.shards.schema import media_type, parse_record
from timeviper.datamodules.source import Unit
from timeviper.datamodules.when import WHEN, parse_interval
from timeviper.weights.lineage import question_digest

NAME = "held-out"

HELD_OUT = TestSet(
    name=NAME,
    title="held-out questions",
    task="open",
    patterns=(),
    read=lambda files: (),
    download="data.val of the run's recipe",
    forms={"official": Form("{question}", max_new_tokens=48)},
    policies={NAME: Policy()},
)


def load_held_out(recipe: Recipe) -> Loaded:
    """All held-out questions of a recipe (`eval.samples` of them). ValueError where there are none."""
    sources = load_sources(recipe.data.val, recipe.data.cache, recipe.data.patience)
    if not sources:
        raise ValueError("the run has no held-out data: name some, such as data.val.mine.shards=FOLDER")
    units = drawn(sources, recipe.eval.samples)
    digest = sha256("".join(question_digest(unit) for unit in units).encode()).hexdigest()
    loaded = Loaded(HELD_OUT, [], digest)
    for one in _items(units):
        (loaded.items if isinstance(one, Item) else loaded.unread).append(one)  # pyright: ignore[reportArgumentType]
    if not loaded.items:
        raise ValueError(f"no held-out question can be asked so: {loaded.unread[0].where} {loaded.unread[0].reason}")
    return loaded


def _items(units: list[Unit]) -> Iterator[Item | Unread]:
    for unit in units:
        fields = [field for field in unit.record.members if media_type(field)]
        files = SampleFiles(unit.shard, unit.record)
        files.expect(["json"], [])
        record = parse_record(files.read("json"), unit.record.members, unit.conversation)
        talk = record["conversations"][unit.conversation]
        *asked, answer = talk["messages"]
        if len(fields) != 1 or len(asked) != 1 or answer["role"] != "assistant" or not Path(unit.shard).is_file():
            yield Unread(unit.key, "asks several times, or about several media, or lies in a store")
            continue
        window = parse_interval(answer["content"]) if talk.get("type") == WHEN else None
        yield Item(
            unit.key,
            VideoRef(unit.key.rpartition("#")[0], unit.shard, f"{unit.record.key}.{fields[0]}"),
            "grounding" if window else "open",
            asked[0]["content"],
            answers=(answer["content"],),
            windows=(window,) if window else (),
            labels={"type": (str(talk.get("type", "")),)},
            duration=unit.record.duration or None,
        )
