"""The plan: every unit once an epoch, the same global batches on any number of ranks, from any step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice

import numpy as np
import plan_reference as reference
import pytest
from bench_plan import MadeUp
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.config import DataConfig, FramesConfig, PhaseConfig, SourceConfig, TransVConfig, TransVStage
from timeviper.config.shape import kept_share
from timeviper.datamodules.mixture import Mixture, Source, UsedUp
from timeviper.datamodules.order import epoch_windows
from timeviper.datamodules.plan import CostModel, Plan, StepPlan, held_out
from timeviper.datamodules.shards.index import Conversation, SampleRecord, ShardIndex


def sample(
    key: str, media: str = "video", duration: float = 8.0, conversations: int = 2, text: int = 40
) -> SampleRecord:
    frames = {"video": int(duration * 4), "image": 1, "none": 0}[media]
    spec = tuple(Conversation("colour", text, 5) for _ in range(conversations))
    return SampleRecord(key, {}, media, duration if media == "video" else 0.0, 4.0, frames, spec)


def source(name: str, shards: int = 3, samples: int = 7, **options) -> Source:
    made = [
        ShardIndex(f"{name}-{s}.tar", 1, tuple(sample(f"{name}{s}-{i}", **options) for i in range(samples)))
        for s in range(shards)
    ]
    return Source(name, made)


COST = CostModel(
    tokens_per_frame=4, vision_share=0.5, frame_work=3.0, estimate=lambda text, frames, turns: 10 + text // 4
)


def plan(sources: Mapping[str, Source], seed: int = 0, phases: dict | None = None, packs_per_step: int = 4) -> Plan:
    config = DataConfig(
        sources={n: SourceConfig(weight=1.0) for n in sources},
        frames=FramesConfig(max_frames=8),
        shuffle_window=10,
        tokens_per_pack=200,
        packs_per_step=packs_per_step,
    )
    return Plan(dict(sources), config, phases or {}, COST, seed)


def keys(steps) -> list[list[list[str]]]:
    return [[[item.unit.key for item in pack] for pack in step.packs] for step in steps]


def epoch(of: Source, seed: int, number: int, window: int, start: int = 0) -> list[int]:
    return np.concatenate([*epoch_windows(of.name, of.counts, seed, number, window, start)]).tolist()


def test_each_unit_once_an_epoch_in_another_order_each_epoch_and_seed() -> None:
    a = source("a")
    first, second = epoch(a, 0, 0, 10), epoch(a, 0, 1, 10)
    assert sorted(first) == sorted(second) == list(range(len(a)))
    assert first != second
    assert first != epoch(a, 1, 0, 10)
    assert first == epoch(a, 0, 0, 10)


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    number=st.integers(0, 5),
    window=st.integers(1, 40),
    data=st.data(),
)
def test_an_epoch_begins_anywhere_as_if_it_had_been_gone_through(
    shards: list[int], number: int, window: int, data: st.DataObject
) -> None:
    made = Source(
        "a", [ShardIndex(f"{s}.tar", 1, tuple(sample(f"{s}{i}") for i in range(n))) for s, n in enumerate(shards)]
    )
    whole = reference.epoch(made, 3, number, window)
    start = data.draw(st.integers(0, len(whole) - 1))
    assert epoch(made, 3, number, window, start) == whole[start:]


@settings(max_examples=40, deadline=None)
@given(
    stop=st.integers(0, 12),
    world=st.sampled_from([1, 2, 4]),
    later=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 3),
)
def test_stopped_runs_go_on_with_the_same_global_batches_on_other_ranks(
    stop: int, world: int, later: int, seed: int
) -> None:
    sources = {"a": source("a"), "b": source("b", shards=1, media="image")}
    whole = list(islice(plan(sources, seed).steps(), 16))
    before = list(islice(plan(sources, seed).steps(), stop))
    after = list(islice(plan(sources, seed).steps(stop), 16 - stop))
    assert keys(before + after) == keys(whole)
    for step, ranks in [(s, world) for s in before] + [(s, later) for s in after]:
        shares = [step.share(r, ranks) for r in range(ranks)]
        assert {len(s.packs) for s in shares} == {4 // ranks}, "every rank has as many packs"
        dealt = sorted(p for s in shares for p in keys([s])[0])
        assert dealt == sorted(keys([step])[0])


def test_every_unit_is_drawn_exactly_once_an_epoch_through_packing() -> None:
    a = source("a", shards=4, samples=9)
    drawn = [k for step in islice(plan({"a": a}).steps(), 60) for pack in keys([step])[0] for k in pack]
    counts = Counter(drawn)
    assert set(counts) == {a[i].key for i in range(len(a))}
    # Units that did not fit wait for the next step, so an epoch's end is blurred by a few units only.
    assert max(counts.values()) - min(counts.values()) <= 1


def test_packs_are_full_and_never_over_the_budget() -> None:
    steps = list(islice(plan({"a": source("a")}).steps(), 20))
    costs = [sum(i.cost for i in p) for s in steps for p in s.packs]
    largest = max(i.cost for s in steps for p in s.packs for i in p)
    assert max(costs) <= 200
    assert min(costs) > 200 - largest


def test_ranks_get_similar_work() -> None:
    mixed = {"a": source("a", duration=30.0), "b": source("b", media="none", text=400)}
    for step in islice(plan(mixed, packs_per_step=8).steps(), 10):
        work = [sum(i.cost for p in step.share(r, 4).packs for i in p) for r in range(4)]
        assert max(work) - min(work) <= 0.25 * max(work)


def test_mixture_follows_weights_at_every_moment_and_pauses() -> None:
    mixture = Mixture({"a": source("a"), "b": source("b"), "c": source("c")}, 0, 10)
    mixture.set_weights({"a": 3, "b": 1, "c": 0})
    seen = Counter()
    for i in range(1, 81):
        seen[mixture.names[mixture.next(1)["source"][0]]] += 1
        assert abs(seen["a"] - 0.75 * i) <= 1
    assert seen["c"] == 0
    mixture.set_weights({"c": 1})
    assert mixture.names[mixture.next(1)["source"][0]] == "c"
    with pytest.raises(ValueError, match="every source has weight 0"):
        mixture.set_weights({"a": 0})


def test_a_phase_changes_frames_and_mixture_at_its_step() -> None:
    sources = {"a": source("a", duration=60.0), "b": source("b", duration=60.0)}
    phases = {
        "short": PhaseConfig(0, max_frames=4, weights={"b": 0.0}),
        "long": PhaseConfig(3, max_frames=16, weights={"a": 0.0}),
    }
    steps = list(islice(plan(sources, phases=phases).steps(), 8))
    for step in steps:
        items = [i for p in step.packs for i in p]
        assert step.frames.max_frames == (4 if step.step < 3 else 16)
        assert {i.num_frames for i in items} == {step.frames.max_frames}
    assert {i.unit.source for s in steps[:3] for p in s.packs for i in p} == {"a"}
    assert {i.unit.source for s in steps[6:] for p in s.packs for i in p} == {"b"}


def test_what_no_pack_can_hold_is_reported_not_dropped() -> None:
    long = source("long", shards=1, samples=1, media="none", text=4000)
    steps = list(islice(plan({"a": source("a"), "long": long}).steps(), 2))
    too_long = [i.unit.key for s in steps for i in s.too_long]
    assert too_long
    assert all(k.startswith("long/") for k in too_long)
    assert steps[0].share(0, 2).too_long
    assert not steps[0].share(1, 2).too_long
    with pytest.raises(ValueError, match="raise it or lower"):
        next(plan({"long": long}).steps())


def test_kept_share_counts_blocks_before_between_and_after_the_transfers() -> None:
    stages: dict = {"early": TransVStage(7, 0.5), "late": TransVStage(39, 0.1, "attention")}
    assert kept_share(TransVConfig(stages), 56) == pytest.approx((7 + 32 * 0.5 + 17 * 0.1) / 56)
    assert kept_share(TransVConfig(), 56) == 1.0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_held_out_units_are_read_once_and_every_rank_has_a_step_for_each(world: int) -> None:
    sources = {"a": source("a"), "b": source("b", media="image")}
    data = DataConfig(frames=FramesConfig(max_frames=8), tokens_per_pack=100)
    steps = held_out(sources, data, COST, 0, world)
    found = [i.unit.key for s in steps for r in range(world) for p in s.share(r, world).packs for i in p]
    assert Counter(found) == Counter(s[i].key for s in sources.values() for i in range(len(s)))
    some = held_out(sources, data, COST, 10, world)
    assert sum(len(p) for s in some for p in s.packs) == 10


def test_a_source_without_the_wanted_types_says_which_it_has() -> None:
    made = [ShardIndex("x.tar", 1, (sample("k"),))]
    with pytest.raises(
        ValueError, match=r"'x' holds no conversation of the types \['count'\]; its shards have \['colour'\]"
    ):
        Source("x", made, {"count"})
    with pytest.raises(ValueError, match=r"no conversation of the types \['colr'\]; its shards have \['colour'\]"):
        Source("x", made, {"colour", "colr"})
    with pytest.raises(ValueError, match=r"'x' holds no conversation$"):
        Source("x", [ShardIndex("x.tar", 1, ())])


def bounded(by: str, epochs: float, seed: int = 0, stages: dict | None = None) -> Plan:
    """A mixture of long, short and text-only units, of which one source is only gone through `epochs` times."""
    sources = {
        "a": source("a"),
        "b": source("b", duration=30.0, shards=1),
        "c": source("c", media="none", text=200, samples=3),
        "d": source("d", media="none", text=900, shards=1, samples=2),  # more than a pack holds
    }
    made = plan(sources, seed, stages)
    for name in sources:
        config = made.data.sources[name]
        config.epochs, config.weight = epochs, 1.0 + len(name)
    made.data.mixture = by  # type: ignore[assignment]
    return made


def all_of(made: Plan, start: int = 0) -> list[StepPlan]:
    """Steps until every source has gone through its epochs."""
    steps: list[StepPlan] = []
    with pytest.raises(UsedUp, match=r"raise data.sources.<name>.epochs or lower train.steps"):
        steps.extend(made.steps(start))
    return steps


@settings(max_examples=60, deadline=None)
@given(
    stops=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=5, max_size=5),
    seed=st.integers(0, 5),
    by=st.sampled_from(["samples", "tokens"]),
    phased=st.booleans(),
)
def test_every_unit_is_read_exactly_twice_in_two_epochs_however_often_the_run_stops(
    stops: list[int], worlds: list[int], seed: int, by: str, phased: bool
) -> None:
    phases = {"late": PhaseConfig(4, max_frames=3, weights={"a": 3.0, "c": 0.5})} if phased else None
    whole = all_of(bounded(by, 2.0, seed, phases))
    read: list[str] = []
    begun = 0
    for stop, world in zip([*stops, 10_000], worlds):
        steps = all_of(bounded(by, 2.0, seed, phases), begun)[:stop]
        assert keys(steps) == keys(whole[begun : begun + len(steps)]), "the same global batches on any world"
        for step in steps:
            for rank in range(world):
                share = step.share(rank, world)
                assert len(share.packs) == 4 // world
                read += [i.unit.key for pack in share.packs for i in pack]
                read += [i.unit.key for i in share.too_long]
        begun += len(steps)
    sources = bounded(by, 2.0).sources
    assert Counter(read) == Counter({s[i].key: 2 for s in sources.values() for i in range(len(s))})


@pytest.mark.parametrize("epochs", [0.5, 1.0, 1.5, 3.0])
def test_epochs_bound_a_source_and_need_not_be_whole(epochs: float) -> None:
    found = Counter(i.unit.key for s in all_of(bounded("samples", epochs)) for p in s.packs for i in p)
    assert sum(n for k, n in found.items() if k.startswith("a/")) == round(epochs * 42)
    assert max(found.values()) == -(-epochs // 1)


def test_an_epoch_bound_that_does_not_last_is_said_before_the_first_step() -> None:
    made = bounded("samples", 1.0)
    steps = len(all_of(made))
    made.check(steps)
    with pytest.raises(UsedUp, match=f"step {steps}: the sources a, b, c, d have gone through all"):
        made.check(steps + 1)


def test_a_mixture_by_tokens_follows_the_weights_in_tokens() -> None:
    made = plan({"a": source("a", duration=30.0), "b": source("b", media="none", text=40)})
    made.data.mixture = "tokens"
    found = [i for s in islice(made.steps(), 60) for p in s.packs for i in p]
    tokens = {n: sum(i.tokens for i in found if i.unit.source == n) for n in "ab"}
    assert tokens["a"] == pytest.approx(tokens["b"], rel=0.05)
    assert sum(i.unit.source == "b" for i in found) > sum(i.unit.source == "a" for i in found)


def test_spares_are_of_the_same_source_no_dearer_and_always_the_same() -> None:
    mixed = {"a": source("a", duration=30.0), "b": source("b", media="none", text=40)}
    first, again = (list(islice(plan(mixed).steps(), 8)) for _ in range(2))
    items = [i for s in first for p in s.packs for i in p]
    assert all(i.spares for i in items)
    for item in items:
        for spare in item.spares:
            assert spare.unit.source == item.unit.source
            assert spare.unit.key != item.unit.key
            assert spare.cost <= item.cost
    assert [s.packs for s in first] == [s.packs for s in again]


def test_namesakes_do_not_stand_in_for_each_other() -> None:
    """Two shards of one file name in two folders, with the same key: only what has another name does."""
    alike = [ShardIndex(f"{place}/a.tar", 1, (sample("same", conversations=1),)) for place in ("x", "y")]
    other = ShardIndex("z/b.tar", 1, (sample("other", conversations=1),))
    (step,) = islice(plan({"a": Source("a", [*alike, other])}).steps(), 1)
    found = {i.unit.record.key: {spare.unit.record.key for spare in i.spares} for pack in step.packs for i in pack}
    assert found == {"same": {"other"}, "other": {"same"}}


def test_a_source_of_one_sample_beside_one_of_ten_million() -> None:
    many = {"one": MadeUp("one", 1, 0), "many": MadeUp("many", 10**7, 1)}
    steps = list(islice(plan(many).steps(), 20))
    drawn = Counter(item.unit.source for step in steps for pack in step.packs for item in pack)
    assert abs(drawn["one"] - drawn["many"]) <= 16  # a step's worth may wait for room
    ones = [i for step in steps for pack in step.packs for i in pack if i.unit.source == "one"]
    assert {(i.unit.key, i.spares) for i in ones} == {("one/shard-000000.tar/00000000#0", ())}
