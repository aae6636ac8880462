"""Columns say what the objects say, however they came together, and in a hundredth of the memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_makers import shards

from timeviper.datamodules.plan import drawn
from timeviper.datamodules.shards.column_join import columns_of, join
from timeviper.datamodules.shards.columns import NAMES, Columns, check
from timeviper.datamodules.shards.index_file import ShardIndex, Turn, line
from timeviper.datamodules.source import Source, Unit


def same(a: Columns, b: Columns) -> bool:
    return all(a.arrays[n].dtype == b.arrays[n].dtype and a.arrays[n].tobytes() == b.arrays[n].tobytes() for n in NAMES)


@settings(max_examples=40, deadline=None)
@given(shards())
def test_columns_give_back_the_objects(made: list[ShardIndex]) -> None:
    columns = columns_of(made)
    check(columns.arrays)
    assert [*columns] == made
    assert columns[-1:] == made[-1:]
    assert columns.locations() == [shard.location for shard in made]
    assert columns.names() == [shard.name for shard in made]
    assert columns.arrays["shard_crc32"].tolist() == [crc32(line(shard)) for shard in made]
    with pytest.raises(IndexError):
        columns[len(made)]


@settings(max_examples=40, deadline=None)
@given(shards(), st.data())
def test_parts_that_are_joined_are_the_whole_to_the_last_byte(made: list[ShardIndex], data: st.DataObject) -> None:
    whole = columns_of(made)
    cuts = sorted({0, len(made), *data.draw(st.lists(st.integers(0, len(made)), max_size=3))})
    assert same(join([whole.shards(a, b) for a, b in pairwise(cuts)]), whole)
    assert same(join([columns_of(made[a:b]) for a, b in pairwise(cuts)]), whole)
    others = columns_of([ShardIndex("elsewhere/x.tar", shard.bytes, shard.samples) for shard in made])
    kept = join([others, whole]).shards(len(made), 2 * len(made))
    assert same(join([kept]), whole)


@settings(max_examples=40, deadline=None)
@given(shards(), st.booleans(), st.randoms(use_true_random=False))
def test_what_the_plan_reads_is_what_the_units_say(made: list[ShardIndex], some: bool, random) -> None:
    kinds = sorted({c.type for shard in made for r in shard.samples for c in r.conversations})
    types = {random.choice(kinds)} if some else None
    source = Source("x", made, types)
    wanted = [
        (shard.location, record, number)
        for shard in made
        for record in shard.samples
        for number, talk in enumerate(record.conversations)
        if not types or talk.type in types
    ]
    assert [(u.shard, u.record, u.conversation) for u in map(source.__getitem__, range(len(source)))] == wanted
    assert source.types == {record.conversations[number].type for _, record, number in wanted}
    rows = np.array(random.sample(range(len(source)), random.randint(0, len(source))), dtype=np.int64)
    units = [source[i] for i in rows.tolist()]
    assert [source.key(i) for i in rows.tolist()] == [unit.key for unit in units]
    facts, sizes = source.facts(rows), source.sizes(rows)
    turns = [*zip(facts.text.tolist(), facts.answer.tolist(), facts.media.tolist())]
    media = [*zip(facts.seconds.tolist(), facts.frames.tolist())]
    assert len(facts.turns_start) == len(facts.media_start) == len(rows) + 1
    for i, (unit, planned) in enumerate(zip(units, source.planned(rows), strict=True)):
        own = replace(unit.record, conversations=(unit.spec,)) if unit.record.members else unit.record
        assert planned == replace(unit, record=own)
        assert planned.spec == unit.spec
        alone = Turn(unit.spec.text_bytes, unit.spec.answer_bytes, len(unit.record.each))
        told = list(unit.spec.turns or (alone,))
        assert turns[facts.turns_start[i] : facts.turns_start[i + 1]] == told
        assert media[facts.media_start[i] : facts.media_start[i + 1]] == list(unit.record.each)
        only = unit.record.each[0] if len(unit.record.each) == 1 else (0.0, 0)
        found = tuple(column[i].item() for column in sizes)
        assert found == (unit.spec.text_bytes, len(told), len(unit.record.each), *only)
    counts = [sum(shard == s.location for shard, _, _ in wanted) for s in made]
    assert source.counts.tolist() == [count for count in counts if count]
    assert [entry.name for entry in source.listing] == [s.name for s, count in zip(made, counts) if count]


def test_columns_that_do_not_fit_are_refused() -> None:
    whole = columns_of([ShardIndex("a.tar", 1, ())]).arrays
    check(whole)
    for name, array, said in (
        ("fps", np.zeros(3), "columns of"),
        ("key_start", np.array([0, 5]), "does not divide"),
        ("sample_start", np.array([0, 7]), "does not divide 0 samples among 1 shards"),
    ):
        with pytest.raises(ValueError, match=said):
            check(whole | {name: array})
    with pytest.raises(ValueError, match="lacks key"):
        check({name: array for name, array in whole.items() if name != "key"})


@settings(max_examples=20, deadline=None)
@given(shards(), shards(), st.integers(0, 12))
def test_a_held_out_set_makes_only_the_units_that_are_drawn(a: list[ShardIndex], b: list[ShardIndex], few: int) -> None:
    sources = {"a": Source("a", a), "b": Source("b", b)}
    every = [source[i] for source in sources.values() for i in range(len(source))]
    chosen = sorted(np.random.default_rng(0).permutation(len(every))[:few].tolist()) if few else range(len(every))
    made = []

    class Watched(Source):
        def __getitem__(self, i: int) -> Unit:
            made.append(unit := super().__getitem__(i))
            return unit

    assert drawn({"a": Watched("a", a), "b": Watched("b", b)}, few) == [every[i] for i in chosen] == made
