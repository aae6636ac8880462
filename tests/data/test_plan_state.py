"""A plan that starts anywhere: equal to its plainest form, from any state, whatever became of the states on disk."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import plan_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.config import ChatConfig, DataConfig, FramesConfig, PhaseConfig, SourceConfig
from timeviper.datamodules.chat import estimate_text, estimate_texts
from timeviper.datamodules.cost import CostModel
from timeviper.datamodules.frames.share import Length
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import Plan, StepPlan
from timeviper.datamodules.plan_files import FOLDER, PlanFiles
from timeviper.datamodules.plan_state import PlanState
from timeviper.datamodules.shards.index import Conversation, SampleRecord, ShardIndex
from timeviper.datamodules.shards.index_file import Turn
from timeviper.datamodules.source import Source
from timeviper.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load("")
CHAT = ChatConfig(time="sentence")


def record(key: str, lengths: list[Length], turns: list[tuple[int, int]], talks: int = 1) -> SampleRecord:
    """A sample about media of these lengths, its turns of these bytes of text and answer; media stand in the first."""
    made = tuple(Turn(text, answer, len(lengths) if not i else 0) for i, (text, answer) in enumerate(turns))
    sums = sum(t.text_bytes for t in made), sum(t.answer_bytes for t in made)
    talk = Conversation("talk", *sums, made if len(made) > 1 else ())
    media = [
        {"type": "video" if n.duration else "image", "duration": n.duration, "frames": n.frames, "fps": 1.0}
        for n in lengths
    ]
    return SampleRecord.of(key, {}, media, (talk,) * talks)


lengths = st.builds(Length, st.sampled_from([0.0, 2.5, 3.5, 7.0, 30.0]), st.integers(1, 40)).map(
    lambda n: n if n.duration else Length(0.0, 1)
)
samples = st.tuples(
    st.lists(lengths, max_size=3),
    st.lists(st.tuples(st.integers(5, 300), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(1, 2),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Sources with several media and turns, phases, ramps, bounds, mixtures and budgets of all kinds."""
    sources = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        shards = draw(st.lists(st.lists(samples, min_size=1, max_size=5), min_size=1, max_size=3))
        made = [
            ShardIndex(f"{s}.tar", 1, tuple(record(f"{s}-{i}", *about) for i, about in enumerate(shard)))
            for s, shard in enumerate(shards)
        ]
        made.append(ShardIndex("z.tar", 1, (record("short", [], [(5, 1)]),)))  # fits always, so that every step ends
        sources[name] = Source(name, made)
    epochs = st.sampled_from([None, None, 0.5, 1.0, 2.5])
    config = DataConfig(
        sources={n: SourceConfig(weight=draw(st.sampled_from([0.1, 1, 3, 10])), epochs=draw(epochs)) for n in sources},
        mixture=draw(st.sampled_from(["samples", "tokens"])),
        frames=FramesConfig(fps=draw(st.sampled_from([0.5, 1, 2])), max_frames=draw(st.integers(1, 12))),
        shuffle_window=draw(st.sampled_from([1, 4, 100])),
        tokens_per_pack=draw(st.sampled_from([120, 260, 500])),
        packs_per_step=draw(st.integers(1, 6)),
    )
    phases = {}
    if draw(st.booleans()):
        phases["late"] = PhaseConfig(
            draw(st.integers(0, 4)), max_frames=4, weights={"a": draw(st.sampled_from([0.5, 2]))}
        )
    ramp = draw(st.booleans())
    cost = CostModel(
        tokens_per_frame=7,
        vision_share=0.37,
        frame_work=3.3,
        estimate=lambda size, frames, turns: estimate_text(TOKENIZER, size, frames, CHAT, turns),
        estimates=(lambda size, frames, turns: estimate_texts(TOKENIZER, size, frames, CHAT, turns))
        if draw(st.booleans())
        else None,
        split=draw(st.booleans()),
        share_at=(lambda step: 1 / (step + 2)) if ramp else None,
    )
    return Plan(sources, config, phases, cost, draw(st.integers(0, 3)))


def shown(step: StepPlan) -> tuple:
    return step.step, [tuple(pack) for pack in step.packs], step.too_long


def some(plan: Plan, start: int, count: int) -> list[tuple]:
    """So many steps, or as many as there are."""
    found = []
    try:
        for step in islice(plan.steps(start), count):
            found.append(shown(step))
    except UsedUp:
        pass
    return found


@settings(max_examples=40, deadline=None)
@given(plan=plans())
def test_it_is_the_plan_in_its_plainest_form_to_the_last_bit(plan: Plan) -> None:
    plain = []
    try:
        for step in islice(reference.steps(plan), 7):
            plain.append([[(i.unit.key, i.cost, i.work, i.sequences) for i in p] for p in (*step.packs, step.too_long)])
    except ValueError:
        pass
    found = [
        [[(i.unit.key, i.cost, i.work, i.sequences) for i in p] for p in (*packs, too_long)]
        for _, packs, too_long in some(plan, 0, 7)
    ]
    assert found == plain


@settings(max_examples=30, deadline=None)
@given(plan=plans(), data=st.data())
def test_it_goes_on_from_any_of_its_states(plan: Plan, data: st.DataObject) -> None:
    whole = some(plan, 0, 8)
    with TemporaryDirectory() as folder:
        plan.states = PlanFiles(Path(folder), write=True, every=data.draw(st.sampled_from([1, 20, 60])))
        assert some(plan, 0, 8) == whole
        start = data.draw(st.integers(0, 8))
        assert some(plan, start, 8 - start) == whole[start:], "from states of before"
        kept = sorted(Path(folder, FOLDER).glob("*")) if Path(folder, FOLDER).is_dir() else []
        for file in kept:  # spoilt, foreign or gone
            what = data.draw(st.sampled_from(["cut", "changed", "foreign", "gone", "sound", "noise"]))
            content = json.loads(file.read_text())
            if what == "cut":
                file.write_text(file.read_text()[:40])
            elif what == "changed":
                file.write_text(json.dumps(content | {"waiting": []}))
            elif what == "foreign":
                state = PlanState.decode(file.read_text(), content["plan"])
                assert state
                file.write_text(state.encode("0" * 16))
            elif what == "gone":
                file.unlink()
            elif what == "noise":
                file.write_bytes(b"\xff\x00[")
        assert some(plan, start, 8 - start) == whole[start:], "whatever became of the states"


def test_what_decides_the_order_decides_which_states_are_believed() -> None:
    def made(**options) -> Plan:
        data = DataConfig(sources={"a": SourceConfig()}, tokens_per_pack=options.pop("tokens", 300))
        length = Length(options.pop("seconds", 9.0), 9)
        source = Source("a", [ShardIndex("x.tar", 1, (record("k", [length], [(40, 4)]),))])
        phases = options.pop("phases", {})
        cost = CostModel(options.pop("frame", 4), 0.5, 3.0, lambda size, frames, turns: size // 4, **options)
        return Plan({"a": source}, data, phases, cost, seed=0)

    plain = made().identity(5)
    assert plain == made().identity(5)
    for other in (
        {"tokens": 301},
        {"seconds": 9.5},
        {"frame": 5},
        {"split": True},
        {"phases": {"p": PhaseConfig(3, fps=2.0)}},
        {"share_at": lambda step: 0.4},
    ):
        assert made(**other).identity(5) != plain, other


def test_a_share_travels_and_a_whole_step_says_where_the_plan_stands_then() -> None:
    source = Source("a", [ShardIndex("x.tar", 1, tuple(record(f"{i}", [], [(40, 4)]) for i in range(9)))])
    data = DataConfig(sources={"a": SourceConfig()}, tokens_per_pack=50, packs_per_step=2)
    plan = Plan({"a": source}, data, {}, CostModel(4, 0.5, 3.0, lambda size, frames, turns: 10 + size // 4), 0)
    step = next(plan.steps(3))
    assert step.after
    assert step.after() == plan.state(4)
    share = step.share(1, 2)
    assert pickle.loads(pickle.dumps(share)) == share
    assert share.after is None


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file")
    source = Source("a", [ShardIndex("x.tar", 1, tuple(record(f"{i}", [], [(40, 4)]) for i in range(9)))])
    data = DataConfig(sources={"a": SourceConfig()}, tokens_per_pack=50)
    cost = CostModel(4, 0.5, 3.0, lambda size, frames, turns: 10 + size // 4)
    states = PlanFiles(tmp_path / "run", write=True, every=1)
    plan = Plan({"a": source}, data, {}, cost, 0, states=states)
    assert len(some(plan, 0, 5)) == 5
    assert caplog.text.count("states of the plan are not kept") == 1
