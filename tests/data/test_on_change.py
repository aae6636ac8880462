"""Shards come, go and are replaced while a run stands still: what is refused, and how it goes on, exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from timeviper.config import DataConfig, FramesConfig, SourceConfig
from timeviper.datamodules.cost import CostModel
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.on_change import FILE, Change, DataRecord, Way, adopt, follow
from timeviper.datamodules.plan import Plan, StepPlan
from timeviper.datamodules.plan_files import FILE as STATE
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, ShardIndex
from timeviper.datamodules.source import Source

EPOCHS = 3
COST = CostModel(4, 0.5, 3.0, lambda size, frames, turns: 10 + size // 4)


def source(name: str, shards: dict[str, tuple[str, int]], where: str = "data") -> Source:
    """shards: by name, a prefix of their keys and the number of their samples."""

    def shard(tar: str, prefix: str, count: int) -> ShardIndex:
        talks = [(Conversation("t", 30 + 11 * (i % 7), 5),) for i in range(count)]
        samples = [SampleRecord(f"{prefix}{i}", {}, "none", 0.0, 0.0, 0, talk) for i, talk in enumerate(talks)]
        return ShardIndex(f"{where}/{tar}", 1, tuple(samples))

    return Source(name, [shard(tar, *about) for tar, about in sorted(shards.items())])


def plan(shards: dict[str, tuple[str, int]], where: str = "data") -> Plan:
    sources = {"a": source("a", shards, where), "b": source("b", {"b.tar": ("b", 13)}, where)}
    config = DataConfig(
        sources={name: SourceConfig(epochs=EPOCHS, weight=w) for name, w in (("a", 2.0), ("b", 1.0))},
        frames=FramesConfig(),
        shuffle_window=6,
        tokens_per_pack=70,
        packs_per_step=2,
    )
    return Plan(sources, config, {}, COST, 0)


def write(made: Plan, step: int, folder: Path) -> Path:
    """A checkpoint as the run writes it, so far as data go."""
    checkpoint = folder / f"checkpoints/step={step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / FILE).write_text(DataRecord.of(made).encode())
    (checkpoint / STATE).write_text(made.state(step).encode(made.identity(step)))
    return checkpoint


def units(steps: Iterable[StepPlan]) -> Counter[str]:
    """What is read of some steps, by key, on two ranks."""
    found: Counter[str] = Counter()
    try:
        for step in steps:
            for share in (step.share(rank, 2) for rank in (0, 1)):
                found.update(i.unit.key for pack in (*share.packs, share.too_long) for i in pack)
    except UsedUp:
        pass
    return found


def keys(made: Plan, name: str) -> set[str]:
    return {made.sources[name].key(i) for i in range(len(made.sources[name]))}


shards = st.dictionaries(st.sampled_from("cdefgh"), st.integers(1, 9), min_size=1, max_size=4).map(
    lambda found: {f"{tar}.tar": (tar, count) for tar, count in found.items()}
)
changes = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["append", "prepend", "replace", "remove"]), st.integers(1, 6)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(before=shards, changes=changes, spoilt=st.booleans())
@example({"c.tar": ("c", 1), "d.tar": ("d", 1)}, [(0, "remove", 1), (0, "replace", 1)], False)  # told of once
def test_finish_epoch_reads_every_sample_once_an_epoch_from_when_it_came(
    before: dict[str, tuple[str, int]], changes: list[tuple[int, str, int]], spoilt: bool
) -> None:
    made, now, step = plan(before), dict(before), 0
    read: Counter[str] = Counter()
    due = dict.fromkeys(keys(made, "a"), EPOCHS)  # of those that are there to the end
    with TemporaryDirectory() as folder:
        for number, (steps, what, count) in enumerate(changes):
            try:
                state = made.state(step + steps)
            except UsedUp:
                break
            read += units(islice(made.steps(step), steps))
            step += steps
            checkpoint = write(made, step, Path(folder, str(number)))
            if what in ("append", "prepend"):
                now[f"{'z' if what == 'append' else 'a'}{number}.tar"] = (f"new{number}-", count)
            elif what == "replace":
                now[min(now)] = (f"other{number}-", count)
            elif len(now) > 1:
                del now[min(now)]
            if spoilt and what in ("append", "prepend"):  # what was read can be told without
                (checkpoint / STATE).write_text("{")
            former = keys(made, "a")
            made = plan(now)
            told = follow(made, checkpoint, step, "finish_epoch")
            here = keys(made, "a")
            assert bool(told) == (former != here)
            epoch = state.standing.places["a"].epoch if "a" in state.standing.places else 0
            gone = former - here
            lost = sum(epoch + 1 - sum(n for k, n in read.items() if k == key) for key in gone & due.keys())
            if gone and all(due[key] == EPOCHS for key in gone & due.keys()):
                assert (f"{lost:,} samples that it had left are gone" in told[-1]) == (lost > 0)
            due = {key: due.get(key, EPOCHS - epoch - 1) for key in here}
        read += units(made.steps(step))
    assert {key: read[key] for key in due} == due
    assert {key: read[key] for key in keys(made, "b")} == dict.fromkeys(keys(made, "b"), EPOCHS)


@settings(max_examples=30, deadline=None)
@given(before=shards, now=shards, steps=st.integers(0, 9))
def test_restart_order_begins_an_epoch_of_what_has_changed_alone(
    before: dict[str, tuple[str, int]], now: dict[str, tuple[str, int]], steps: int
) -> None:
    made = plan(before)
    read = units(islice(made.steps(), steps))
    with TemporaryDirectory() as folder:
        try:
            checkpoint = write(made, steps, Path(folder))
        except UsedUp:
            return
        made = plan(now)
        told = follow(made, checkpoint, steps, "restart_order")
        # Where nothing tells any more what was read, the order of today's shards begins all the same.
    after = units(made.steps(steps))
    expected = Counter(dict.fromkeys(keys(made, "a"), EPOCHS))
    if told:
        assert Counter({k: n for k, n in after.items() if k.startswith("a/")}) == expected
    assert {k: (read + after)[k] for k in keys(made, "b")} == dict.fromkeys(keys(made, "b"), EPOCHS)


def test_a_run_refuses_other_shards_with_their_names_and_the_ways_on(tmp_path: Path) -> None:
    before = {"c.tar": ("c", 5), "d.tar": ("d", 5), "e.tar": ("e", 4)}
    checkpoint = write(plan(before), 2, tmp_path)
    now = {"c.tar": ("other", 5), "d.tar": ("d", 5), "f.tar": ("f", 3), "g.tar": ("g", 3)}
    with pytest.raises(ValueError, match="'a' have changed since: ") as refused:
        follow(plan(now), checkpoint, 2, "refuse")
    said = str(refused.value)
    assert "2 appended: f.tar, g.tar; 1 replaced: c.tar; 1 gone: e.tar" in said
    assert "data.on_change=finish_epoch" in said
    assert "data.on_change=restart_order" in said
    (checkpoint / STATE).unlink()
    with pytest.raises(ValueError, match="shards of before are gone: what the run has read of them cannot be told"):
        follow(plan(now), checkpoint, 2, "finish_epoch")


@pytest.mark.parametrize("way", ["refuse", "finish_epoch", "restart_order"])
def test_moved_shards_are_the_same_shards(tmp_path: Path, way: Way) -> None:
    shards = {"c.tar": ("c", 5), "d.tar": ("d", 5)}
    made = plan(shards)
    checkpoint = write(made, 2, tmp_path)
    moved = plan(shards, "s3://elsewhere/data")
    assert follow(moved, checkpoint, 2, way) == []
    assert units(moved.steps(2)) == units(made.steps(2))


def test_a_record_that_is_damaged_is_no_answer_and_one_that_was_never_there_no_question(tmp_path: Path) -> None:
    made = plan({"c.tar": ("c", 5)})
    checkpoint = write(made, 2, tmp_path)
    file = checkpoint / FILE
    whole = file.read_text()
    content = json.loads(whole)
    del content["sources"]["a"][0]
    for damaged in (whole[:50], json.dumps(content), "[]", "\x00"):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"data.json is damaged .* delete it, else continue from an earlier"):
            follow(plan({"c.tar": ("c", 5)}), checkpoint, 2, "refuse")
    file.unlink()
    assert follow(plan({"c.tar": ("c", 6)}), checkpoint, 2, "refuse") == []


def test_whoever_looks_at_a_run_later_sees_the_order_that_it_reads(tmp_path: Path) -> None:
    before = {"c.tar": ("c", 9), "d.tar": ("d", 9)}
    first = write(plan(before), 2, tmp_path)
    now = before | {"e.tar": ("e", 4)}
    made = plan(now)
    follow(made, first, 2, "finish_epoch")
    write(made, 4, tmp_path)
    later = plan(now)
    adopt(later, tmp_path)
    for start in (2, 3, 5):
        assert units(islice(later.steps(start), 2)) == units(islice(made.steps(start), 2))
    assert units(later.steps(2)) != units(plan(now).steps(2))
    other = plan(before)
    adopt(other, tmp_path)  # not the shards of the run: nothing to adopt
    assert other.origin is None


def test_a_change_is_told_by_name() -> None:
    listing = source("a", {f"{i:02}.tar": (str(i), 2) for i in range(30)}).listing
    assert Change.between(listing, listing) is None
    assert str(Change.between(listing[:2], listing)).startswith("28 appended: 02.tar, 03.tar, 04.tar")
    assert str(Change.between(listing[:2], listing)).endswith("and 20 more")
    assert str(Change.between(listing, listing[::-1])) == "the same shards in another order"
    again = (listing[0], listing[1]._replace(digest="0"))
    assert str(Change.between(listing[:2], again)) == "1 replaced: 01.tar"
