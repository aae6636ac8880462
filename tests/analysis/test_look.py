"""`timeviper look`: frames, times, survivors as `ask` has them, all kinds of models, and what is no good question."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import random_run
from video_helpers import write_clip

from timeviper.analysis.lines import auc, stretches
from timeviper.analysis.look import Look, _shown, look
from timeviper.analysis.look_options import Options, options_of
from timeviper.analysis.look_page import Found, page_of
from timeviper.analysis.page import render
from timeviper.analysis.windows import Hiding, check_windows, frames_within
from timeviper.cli import main as cli
from timeviper.cli.look import summary
from timeviper.errors import ConfigError
from timeviper.inference.ask import Answer, LoadedModel, load

QUESTION = "What colour is the ring?"
DENSE = ("data.frames.fps=5", "data.frames.max_frames=10800", "eval.max_new_tokens=6")
NO_STAGE = ("model.transv.stages.early=null", "model.transv.stages.late=null")
MODELS = {
    "published": (),
    "no stage": NO_STAGE,
    "transformer": ("model.decoder.family=llama", 'model.decoder.layout="*-*-*-*-"', *NO_STAGE),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds at ten frames each."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 90)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: random_run(tmp_path_factory.mktemp("run"), *changes) for name, changes in MODELS.items()}


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> LoadedModel:
    return load(runs["published"], device="cpu", overrides=DENSE)


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """What the command line prints, on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["timeviper", *words])
    try:
        cli.main()
    except SystemExit as end:
        if end.code not in (0, None):
            return (found := capsys.readouterr()).out, found.err + str(end.code)
    return (found := capsys.readouterr()).out, found.err


@pytest.mark.parametrize("size", [4096, 100])
def test_ask_and_look_agree(size: int, runs: dict[str, Path], clip: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = [QUESTION, "--run", str(runs["published"]), "--video", str(clip), "--json", *DENSE]
    words.append(f"eval.tokens_per_piece={size}")
    asked = json.loads(typed(monkeypatch, capsys, "ask", *words)[0])
    seen = json.loads(typed(monkeypatch, capsys, "look", *words, "-o", str(tmp_path))[0])
    assert {name: seen[name] for name in asked} == asked
    assert len(asked["frame_times"]) == 45
    assert [len(counts) for counts in asked["survivors"].values()] == [45, 45]
    assert [sum(counts) for counts in asked["survivors"].values()] == list(asked["tokens"]["kept"].values())
    assert json.loads((tmp_path / "look.json").read_text()) == seen
    assert {path.name for path in tmp_path.iterdir()} >= {"look.html", "look.json", "timeline.svg", "survivors.svg"}


def test_every_share_is_accounted_for_in_pieces_and_whole(
    model: LoadedModel, clip: Path, runs: dict[str, Path]
) -> None:
    whole = look(model, QUESTION, str(clip), Options())
    small = load(runs["published"], device="cpu", overrides=[*DENSE, "eval.tokens_per_piece=100"])
    pieces = look(small, QUESTION, str(clip), Options())
    assert [line.block for line in whole.lines] == [0, 2, 3, 5, 7, 8]
    assert whole.edges == list(range(10))
    for a, b in zip(whole.lines, pieces.lines):
        np.testing.assert_allclose(a.share, b.share, rtol=0, atol=1e-5)
        assert abs(a.vision + sum(a.parts.values()) - 1) < 1e-5
        assert np.nansum(a.null) < 1
    assert abs(whole.nats - pieces.nats) < 1e-3
    # What wrote the answer are the last prompt token and the answer without its last.
    assert len(whole.row_tokens) == len(whole.followed.ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["rows", "relevance"])
def test_every_kind_of_model(name: str, method, runs: dict[str, Path], clip: Path) -> None:
    seen = look(load(runs[name], device="cpu"), QUESTION, str(clip), Options(method=method, truth=(2.0, 4.0)))
    page = render(page_of(Found(seen, name)))
    kinds = {line.kind for line in seen.lines}
    assert kinds == ({"attention"} if name == "transformer" else {"mamba", "attention"})
    assert ("has no Mamba block" in page) == (name == "transformer")
    assert ("no TransV stage" in page) == (name in ("no stage", "transformer"))
    assert all(line.truth_auc is None or 0 <= line.truth_auc <= 1 for line in seen.lines)
    if method == "relevance":
        assert all(line.missing is not None and line.missing < 1e-5 for line in seen.lines)
    lines = summary(Found(seen, name))
    assert max(map(len, lines)) <= 80, lines
    json.dumps(seen.as_dict(), allow_nan=False)


def test_rows_and_blocks_can_be_chosen(model: LoadedModel, clip: Path) -> None:
    last = look(model, QUESTION, str(clip), Options(rows="last", blocks=(3, 0)))
    assert [line.block for line in last.lines] == [0, 3]
    assert len(last.row_tokens) == 1
    question = look(model, QUESTION, str(clip), Options(rows="question", blocks=(3,)))
    assert "ring" in "".join(question.row_tokens)
    assert question.lines[0].parts.get("answer", 0.0) == 0, "no row of the question sees the answer"


def test_the_page_holds_every_number_and_no_address(model: LoadedModel, clip: Path) -> None:
    seen = look(model, "Is <b>red</b> & blue there?", str(clip), Options(truth=(2.0, 4.0)))
    cost = Hiding(model, seen.followed)
    checked = check_windows(cost, len(seen.answer.frame_times), frames_within(seen.answer.frame_times, (2.0, 4.0)))
    page = render(page_of(Found(seen, "run", checked)))
    assert "&lt;b&gt;red" in page
    assert "<b>red" not in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert len(page) < 5_000_000
    told = Found(seen, "run", checked).as_dict()
    assert told["check"]["truth"]["frames"] == 10
    assert len(told["check"]["truth"]["random_nats"]) == 5


def test_a_whole_prompt_is_cut(model: LoadedModel, clip: Path) -> None:
    """Question and answer are computed without the hidden frames in every mixer; all else as always."""
    seen = look(model, QUESTION, str(clip), Options(blocks=(0,)))
    cost = Hiding(model, seen.followed)
    assert cost(frozenset()) == 0
    assert abs(cost.base - seen.nats) < 1e-3, "what is written token by token, and in one pass"
    assert cost.how == "hidden from question and answer"
    assert cost(frozenset(range(10, 20))) != 0
    assert cost(frozenset(range(45))) != 0


def test_hidden_frames_of_a_long_prompt_reach_no_answer(clip: Path, runs: dict[str, Path]) -> None:
    """Whatever they show."""
    model = load(runs["published"], device="cpu", overrides=[*DENSE, "eval.tokens_per_piece=100"])
    frames = model.read_video(clip)
    other = frames.pixels.copy()
    other[10:20] = 255 - other[10:20]
    hidden, found = frozenset(range(10, 20)), []
    for pixels in (frames.pixels, other):
        medium = model.media(type(frames)(pixels, frames.times, frames.duration, 45, 10.0))
        followed = replace(model.follow(QUESTION, medium), ids=torch.arange(5, 9))
        cost = Hiding(model, followed)
        assert cost(frozenset()) == 0
        assert cost.how == "gone from the prompt"
        found.append((cost.nats(hidden), cost.base))
        assert cost(frozenset(range(45))) != 0
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_halving_finds_planted_windows() -> None:
    def planted(evidence: range, needed: int = 1):
        """The answer costs 8 nats once fewer than `needed` of the evidence's frames are left."""
        return lambda hidden: 8.0 if len([i for i in evidence if i not in hidden]) < needed else 0.01 * len(hidden)

    for evidence in (range(40, 44), range(0, 3), range(61, 64), range(30, 35)):
        found = check_windows(planted(evidence), 64)
        assert found.top is not None
        assert set(evidence) <= set(found.top.frames), "hiding a part of the evidence costs nothing: all of it is there"
        assert len(found.top.frames) <= 16
        assert found.top.nats > max(found.top.random) + 4
        assert len(found.tried) <= 18
    flat = check_windows(lambda hidden: 0.001 * len(hidden), 64)
    assert flat.top is None
    twice = check_windows(lambda hidden: 8.0 * ({0, 63} <= hidden), 64)
    assert twice.top is not None
    assert twice.top.frames == range(64), "each half tells it alone"
    single = check_windows(lambda hidden: float(bool(hidden)), 1)
    assert single.top is not None
    assert single.top.random == []


def test_the_film_shows_what_the_last_stage_left_first() -> None:
    early, late = [1] * 100, [0] * 100
    late[7], late[90] = 1, 2
    shown = _shown(Answer("", "", "", 100.0, [*range(100)], 0, 0, {}, {"early": early, "late": late}))
    assert len(shown) == 48
    assert shown == sorted(shown)
    assert {7, 90} <= set(shown)
    assert max(b - a for a, b in pairwise(shown)) <= 4, "of equals evenly spaced ones"
    assert _shown(Answer("", "", "", 9.0, [*range(9)], 0, 0, {}, {"only": [0, 2, 0, 0, 1, 0, 0, 0, 0]})) == [1, 4]


def test_stretches_of_time(model: LoadedModel, clip: Path) -> None:
    medium = model.media(str(clip))
    assert stretches(medium, 2.5) == [0, 2.5, 5, 7.5, 10]
    assert auc([0.1, 0.4, 0.2, math.nan], [0, 1, 2, 3, 4], (1, 2)) == 1.0
    assert auc([0.1, 0.4, 0.4], [0, 1, 2, 3], (1, 2)) == 0.75
    assert auc([0.1, 0.4], [0, 1, 2], (0, 2)) is None


BAD = {
    "layer": (("--blocks", "1,40"), "block 1 is an MLP"),
    "no layer": (("--blocks", "40"), "there are blocks 0 to 9"),
    "word": (("--blocks", "x"), "must be numbers of blocks"),
    "empty window": (("--truth", "5-5"), "is an empty window"),
    "outside": (("--truth", "5-50"), "lies outside of the video, which lasts 9 seconds"),
    "between frames": (("--truth", "2.01-2.02"), "holds none of the 45 frames"),
    "no times": (("--truth", "soon"), "must be two times"),
    "not seconds": (("--truth", "a-b"), "must be seconds"),
    "no stretch": (("--per", "0s"), "must be seconds above 0"),
    "too fine": (("--per", "0.001"), "0.0045s at least"),
    "rows": (("--rows", "all"), "must be answer, question or last"),
    "method": (("--method", "magic"), "must be rows or relevance"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_wishes_are_told(name: str, model: LoadedModel, clip: Path) -> None:
    words, says = BAD[name]
    given = dict.fromkeys(("--rows", "--per", "--method", "--truth", "--blocks")) | {
        "--rows": "answer",
        "--method": "rows",
    }
    given |= dict([words])
    with pytest.raises(ConfigError, match=says):
        look(model, QUESTION, str(clip), options_of(*given.values(), None))  # type: ignore[arg-type]


def test_a_picture_has_no_seconds(runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys) -> None:
    from timeviper.datamodules.world.render import encode_image

    picture = tmp_path / "one.png"
    picture.write_bytes(encode_image(np.zeros((32, 32, 3), np.uint8), "png"))
    words = ("look", QUESTION, "--run", str(runs["no stage"]), "--video")
    assert "is a picture, and has no seconds" in typed(monkeypatch, capsys, *words, str(picture))[1]
    told = typed(monkeypatch, capsys, *words, str(tmp_path / "none.mp4"))[1]
    assert "is not there" in told
    assert "Traceback" not in told


def test_a_summary_names_the_window_that_was_hidden(model: LoadedModel, clip: Path) -> None:
    seen: Look = look(model, QUESTION, str(clip), Options())
    checked = check_windows(lambda hidden: 5.0 if set(range(20, 24)) <= hidden else 0.0, 45)
    lines = summary(Found(seen, "run", checked))
    assert any(line.startswith("hiding the top window, ") for line in lines)
    assert max(map(len, lines)) <= 80
    twice = check_windows(lambda hidden: 8.0 * ({0, 44} <= hidden), 45)
    lines = summary(Found(seen, "run", twice))
    assert "any half of them at most 0.00: it is told more than once" in " ".join(lines)
    assert not any("hiding the top window" in line for line in lines)


def test_in_bfloat16(runs: dict[str, Path], clip: Path) -> None:
    for method in ("rows", "relevance"):
        model = load(runs["published"], device="cpu", dtype="bfloat16", overrides=DENSE)
        seen = look(model, QUESTION, str(clip), Options(method=method))
        assert all(abs(line.vision + sum(line.parts.values()) - 1) < 0.1 for line in seen.lines)
        assert math.isfinite(Hiding(model, seen.followed)(frozenset({3, 4})))
