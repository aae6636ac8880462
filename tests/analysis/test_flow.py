"""Cuts of edges by depth: what each pass hides, what sweeps reach, and what the verb writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_helpers import random_run
from model_helpers import HYBRID, PLAIN, make_decoder
from viper_helpers import config, make_model, sample, samples

from timeviper.analysis.cut import cutting, mixers
from timeviper.analysis.flow import BLIND, TEXT, WHOLE, Cut, Sweep, curves, measure, passes, random_set, tokens_of
from timeviper.analysis.flow_findings import findings, warnings
from timeviper.analysis.flow_options import SETTINGS, FlowOptions, read_options
from timeviper.analysis.flow_study import Flow, study
from timeviper.analysis.options import Words
from timeviper.analysis.samples import blind
from timeviper.analysis.scores import Scores, band, videos
from timeviper.analysis.subject import load_subject
from timeviper.analysis.walk import Walk
from timeviper.cli.main import app
from timeviper.errors import ConfigError
from timeviper.inspection.transfer import divergence
from timeviper.model.decoder import Decoder
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack


def asked(*words: str, decoder: Decoder | None = None) -> FlowOptions:
    return read_options(Words("analyse flow", words, SETTINGS), decoder or make_decoder(HYBRID))


def with_video() -> Pack:
    return Pack.join([sample("2c12v3i4a", 3, 1), sample("1c4v2i1a", 1, 3), sample("2c8v2i4v3i5a", 3, 4)])


def test_sweeps_count_mixers_not_blocks() -> None:
    there = mixers("M-M*-M-M*-")
    assert there == [0, 2, 3, 5, 7, 8]
    assert Sweep("from").blocks(there, 3) == [3, 5, 7, 8]
    assert Sweep("until").blocks(there, 3) == [0, 2, 3]
    assert Sweep("only").blocks(there, 3) == [3]
    assert Sweep("window", 3).blocks(there, 3) == [2, 3, 5]
    assert Sweep("window", 3).blocks(there, 0) == [0, 2]  # the window is cut at the ends
    assert Sweep("window", 2).blocks(there, 8) == [8]
    assert Sweep("window", 4).blocks(there, 3) == [2, 3, 5, 7]


def test_curves_share_passes_and_cuts_of_nothing_need_none() -> None:
    model = make_model()
    made = curves(model.decoder, ["V-I"], ["*", "M", "*M", "*MT"], Sweep("from"))
    assert [(c.roads, c.null) for c in made] == [
        ("*", False),
        ("M", False),
        ("*M", False),
        ("*MT", False),
        ("*MT", True),
    ]
    attention = made[0]  # M-*M-*M-: from block 0 and from block 2 on the attention blocks are the same
    assert attention.cuts[0] == attention.cuts[2] == Cut("V-I", (2, 5), ())
    assert attention.cuts[6].blocks == ()
    assert made[3].cuts[0].transfers == ("early", "late")
    assert made[3].cuts[3].transfers == ("late",)  # early stands before block 1, so it belongs to the mixer at 2
    found = passes(made)
    assert len(found) == len(set(found)) == len({cut.name for cut in found})
    assert all(cut.blocks or cut.transfers for cut in found)


@torch.no_grad()
def plain(model: TimeViper, pack: Pack, cut: Cut | None) -> Scores:
    """A forward pass of the whole model for each sequence, with loops."""
    found: list[list[float]] = [[], [], []]
    whole = model(pack, label_logits=True).label_logits
    if cut is None:
        changed = whole
    else:
        with cutting(model.decoder, *tokens_of(pack, cut), cut.blocks, cut.transfers):
            changed = model(pack, label_logits=True).label_logits
    start = 0
    for labels in pack.labels.split(pack.lengths):
        y = labels[labels >= 0]
        p, q = whole[start : start + len(y)], changed[start : start + len(y)]
        start += len(y)
        found[0].append(float(divergence(p, q).mean()))
        found[1].append(float((q.argmax(-1) == y).all()))
        found[2].append(float(-q.log_softmax(-1)[torch.arange(len(y)), y].sum()))
    return Scores(*found)


@torch.no_grad()
def test_passes_from_a_middle_block_are_passes_of_the_whole_model() -> None:
    """Scores of a walk that is continued, on a pack behind stages, against whole forward passes."""
    model, pack = make_model(), with_video()
    made = curves(model.decoder, ["V-I", "V-A"], ["*", "*MT"], Sweep("window", 2), [0, 3, 6])
    cuts = passes(made)
    found = dict(measure(model, pack, cuts))
    assert set(found) == {WHOLE, BLIND, TEXT, *cuts}
    assert max(found[WHOLE].kl) == 0.0
    expected = {cut: plain(model, pack, cut) for cut in cuts} | {WHOLE: plain(model, pack, None)}
    for name, scores in expected.items():
        for a, b in zip(vars(found[name]).values(), vars(scores).values()):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_text_alone_knows_no_frame_and_blind_is_grey() -> None:
    model, pack = make_model(), with_video()
    other = replace(pack, frames=255 - pack.frames)
    first, second = dict(measure(model, pack, [])), dict(measure(model, other, []))
    assert first[TEXT].nll == second[TEXT].nll
    assert first[BLIND].nll == second[BLIND].nll == dict(measure(model, blind(pack), []))[WHOLE].nll
    assert first[WHOLE].nll != second[WHOLE].nll


@torch.no_grad()
def test_a_walk_goes_one_way_and_ends_as_the_decoder_does() -> None:
    model, pack = make_model(), Pack.join(samples())
    expected = model(pack).decoder.hidden
    index = model(pack).decoder.index
    where = pack.labels[index] >= 0
    walk = Walk(model.decoder, model.embed(pack), pack)
    for block in range(len(HYBRID.layout)):
        walk.to(block)
        assert torch.equal(walk.end(), expected[where])
    with pytest.raises(ValueError, match="lies behind"):
        walk.to(0)


def test_random_sets_are_as_large_and_a_samples_own() -> None:
    pack = with_video()
    for edge in ("V-I", "V-A", "V-IA"):
        hide, rows = tokens_of(pack, Cut(edge, (), (), null=True))
        vision = pack.kind == Kind.VISION
        assert not (hide & rows).any()
        parts = zip(*(t.split(pack.lengths) for t in (hide, rows, vision)))
        for hidden, hears, seen in parts:
            last = int(hears.nonzero().max())
            assert int(hidden.sum()) == min(int(seen.sum()), int((~hears[:last]).sum()))
            assert not hidden[last:].any()
        alone = [replace(p, keys=p.keys) for p in (sample("2c12v3i4a", 3, 1),)]
        own, _ = tokens_of(alone[0], Cut(edge, (), (), null=True))
        assert torch.equal(own, hide[: len(own)])  # whatever stands beside it in the pack
    nobody = torch.zeros(len(pack.kind), dtype=torch.bool)
    assert not random_set(pack, pack.kind == Kind.VISION, nobody).any()


def test_bands_draw_videos() -> None:
    keys = ["v/a#0", "v/a#1", "v/b#0", "v/c"]
    assert videos(keys).tolist() == [0, 0, 1, 2]
    found = band([1.0, 1.0, 0.0, 0.5], videos(keys))
    assert found.low < found.mean == 0.625 < found.high
    assert band([0.0] * 4, videos(keys)).high == 0.0


def made_up(kl: dict[str, list[float]], right: dict[str, list[float]]) -> Flow:
    """A flow of two mixers with figures as given, constant over 50 videos."""
    decoder = make_decoder(replace(HYBRID, layout="M*"))
    options = asked("edges=V-I", decoder=decoder)
    made = curves(decoder, options.edges, options.roads, options.sweep)
    keys = [f"video{i}" for i in range(50)]
    scores = {WHOLE: Scores([0.0] * 50, [1.0] * 50, [0.0] * 50)}
    scores |= {name: Scores([1.0] * 50, [0.2] * 50, [1.0] * 50) for name in (TEXT, BLIND)}
    for curve in made:
        for place, cut in curve.cuts.items():
            if cut.blocks:
                name = "null" if curve.null else curve.roads
                scores[cut.name] = Scores([kl[name][place]] * 50, [right[name][place]] * 50, [0.0] * 50)
    return Flow("M*", {}, scores, keys, [], options, made, {"V-I": [0.5] * 50})


def test_what_the_figures_say() -> None:
    kl = {"*": [0.1, 0.1], "M": [0.5, 0.0], "*M": [1.0, 0.1], "null": [0.2, 0.1]}
    right = {"*": [0.9, 0.9], "M": [0.5, 1.0], "*M": [0.2, 0.9], "null": [1.0, 1.0]}
    flow = made_up(kl, right)
    reached, missed, cliff, null = findings(flow)
    assert "right 0.200 of the time, on grey frames 0.200, the model as it is 1.000: no difference is shown" in reached
    assert "attention alone 0.900 right, with the Mamba-2 blocks 0.200" in missed
    assert missed.endswith("misses 90% of the 1 nats, and does not reach the blind score of 0.200.")
    assert "the cliff is at block 0 (Mamba-2). Cut from block 0 costs 1 nats, from block 1 0.1" in cliff
    assert "costs more than hiding as many tokens at random, of which 50% are vision" in null
    assert warnings(flow) == ["The run has no TransV stage: vision meets text in its mixers alone."]
    flat = {name: [0.001, 0.001] for name in kl}
    _, missed, cliff, _ = findings(made_up(flat, {name: [1.0, 1.0] for name in kl}))
    assert missed.endswith("cuts as little.")
    assert "no step along the depth is larger than 0.005 nats" in cliff
    even = kl | {"*M": [1.0, 0.9]}
    assert "no cliff; the largest step is 0.1 of 1 nats" in findings(made_up(even, right))[2]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("edges=V-X", r"has no V-X: write V-I, V-A or V-IA"),
        ("edges=", "is empty"),
        ("layers=all", r"must be one of from \(.*window \(.*window:3"),
        ("layers=window:9", "needs a width in mixers, 1 to 5"),
        ("layers=from:2", "must be one of"),
        ("mixers=A", r"has A: write letters of \* attention, M Mamba-2, T TransV"),
        ("at=1", "names blocks of M-.* where tokens meet, with commas between: 0, 2, 3, 5, 6"),
        ("at=40", "0, 2, 3, 5, 6"),
        ("at=x", "0, 2, 3, 5, 6"),
        ("samples=0", "must be a whole number, 1 or more"),
        ("sampels=3", "is no setting of analyse flow, .*Did you mean samples"),
        ("V-I", "a setting is key=value"),
        ("mixers=T", "names nothing that this model has, which is .*, M"),
    ],
)
def test_settings_that_cannot_be(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(word)


def test_a_transformer_is_told_that_it_has_no_mamba_blocks() -> None:
    options = asked(decoder=make_decoder(PLAIN))
    assert options.roads == ("*",)
    assert options.notes == ("This model has no Mamba-2: what is said of M is left out.",)
    assert asked("mixers=M*,*MT,*", decoder=make_model(config()).decoder).roads == ("*M", "*MT", "*")
    assert Words("analyse flow", ["data.frames.max_frames=4"], SETTINGS).overrides == ["data.frames.max_frames=4"]


def test_the_verb(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes what it says, continues what was stopped, and says what it cannot look at."""
    run = random_run(tmp_path / "run", val=world / "val/videos")
    common = ["analyse", "flow", str(run), "edges=V-I", "mixers=*,M,*M", "samples=6"]
    app([*common, "at=0,3", "--json"], standalone_mode=False)
    told, folder = json.loads(capsys.readouterr().out), run / "analysis"
    assert sorted(p.suffix for p in folder.iterdir()) == [".html", ".json", ".svg", ".svg", ".svg"]
    written = json.loads((folder / "flow.json").read_text())
    assert told.items() <= written.items()
    assert written["schema"] == 1
    assert len(written["samples"]) == 6
    assert [len(curve["points"]) for curve in written["curves"]] == [2, 2, 2, 2]
    page = (folder / "flow.html").read_text()
    assert "vision to instruction" in page
    assert "What not to conclude" in page
    app([*common, "at=8", "data.val.clips.shards=" + str(world / "val/images")], standalone_mode=False)
    assert "V-I: vision to instruction, cut from this block on" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="write V-I, V-A or V-IA"):
        app([*common[:3], "edges=A-V"], standalone_mode=False)
    with pytest.raises(ValueError, match="no shards"):
        app([*common, "data.val.clips.shards=" + str(tmp_path / "none")], standalone_mode=False)
    with pytest.raises(FileNotFoundError):
        app(["analyse", "flow", str(tmp_path / "none")], standalone_mode=False)


def test_what_was_stopped_continues(world: Path, tmp_path: Path) -> None:
    """Figures of packs that are done are kept, of the same settings alone."""
    run = random_run(tmp_path / "run", "data.tokens_per_pack=160", val=world / "val/videos")
    subject = load_subject(run)
    options = asked("edges=V-A", "mixers=*", "at=3", "samples=6", decoder=subject.model.decoder)
    kept = tmp_path / "kept.jsonl"

    def stop(done: int, total: int, unit: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    whole = study(subject, options, tmp_path / "other.jsonl", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        study(subject, options, kept, stop)
    done = len(kept.read_text().splitlines())
    assert done >= 1
    with kept.open("a") as file:
        file.write('{"digest": "cut off in the mid')
    passes_made = []
    again = study(subject, options, kept, lambda done, *_: passes_made.append(done))
    assert min(passes_made) > 1
    assert again.scores == whole.scores
    assert again.keys == whole.keys
    fresh = []
    study(subject, replace(options, samples=5), kept, lambda done, *_: fresh.append(done))
    assert min(fresh) == 1
