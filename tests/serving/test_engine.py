"""The engine without a network: rows that come and go change nothing of each other, and what is not wanted leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import random_run
from model_helpers import SCHEDULES, make_decoder

from timeviper.datamodules.build import pack_format
from timeviper.inference.ask import LoadedModel, load
from timeviper.inference.given import media_of
from timeviper.inference.prefill import Prefilled, prefill
from timeviper.inference.question import Question, read_question
from timeviper.kernels.bounds import Bounds
from timeviper.serving.engine import Engine
from timeviper.serving.jobs import Job, QueueFullError, TooLargeError
from timeviper.serving.rows import Rows, copies
from timeviper.serving.turns import Pause, Turns
from timeviper.serving.writing import Shown, StopText, Style

LONG = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(random_run(tmp_path_factory.mktemp("serve")), device="cpu", overrides=[f"eval.max_new_tokens={LONG}"])


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(256, size=(3 + 5 * number % 17, 32, 32, 3), dtype=np.uint8)


def words(number: int) -> str:
    return "What happens" + " then" * (number % 5) + f" at {number}?"


def prefilled(model: LoadedModel, number: int) -> Prefilled:
    form, video = pack_format(model.recipe), pixels(number)
    medium = media_of(video, form.image_size, model.recipe.data.frames, np.arange(float(len(video))))
    question = Question([{"role": "user", "content": words(number)}], [medium])
    _, start = read_question(model.model, model.tokenizer, form, question, tokens_per_piece=4096, max_new_tokens=LONG)
    return start


class Said:
    """What a job was told."""

    def __init__(self, model: LoadedModel, number: int, style: Style | None = None, **more: Any) -> None:
        self.text: dict[int, str] = {}
        self.ends: dict[int, str] = {}
        self.pieces: list[str] = []
        self.error: Exception | None = None
        read: Callable[[Pause], Prefilled] = more.pop("read", lambda _: prefilled(model, number))
        style = style or Style(LONG)
        self.job = Job(read, style, more.pop("num_bytes", 1), self.on_text, on_error=self.on_error, **more)

    def on_text(self, number: int, shown: Shown) -> None:
        self.text[number] = self.text.get(number, "") + shown.text
        self.pieces.append(shown.text)
        if shown.end:
            self.ends[number] = shown.end

    def on_error(self, error: Exception) -> None:
        self.error = error


def engine_of(model: LoadedModel, **options: Any) -> Engine:
    return Engine(model.model, model.tokenizer, **options)


def run(engine: Engine, most: int = 5000) -> None:
    with torch.inference_mode():
        for _ in range(most):
            if not engine.turn() and not engine.waiting and not engine.reading:
                return
    raise AssertionError("the engine does not come to an end")


# ---- the same bits alone and in company ----


@torch.inference_mode()
def test_a_row_is_the_same_bits_in_any_place_and_company(model: LoadedModel) -> None:
    """Alone in its first place; among fifteen others that come and go; moved to another group in the middle."""
    decoder, states = model.model.decoder, [prefilled(model, n).state for n in range(16)]

    def logits(rows: Rows, place: int, token: int) -> torch.Tensor:
        ids = [(7 * i + token) % 50 for i in range(rows.width)]
        ids[place] = token
        return rows.step(ids)[place]

    one, other = copies(states[5], 2)
    alone = Rows(decoder, 16)
    place = alone.put(one, LONG)
    expected = [logits(alone, place, token) for token in range(12)]

    crowd = Rows(decoder, 16)
    for n in (0, 1, 2, 3, 4):
        crowd.put(copies(states[n], 2)[1], 40)
    place = crowd.put(other, LONG)
    found = [logits(crowd, place, token) for token in range(3)]
    for n in (6, 7, 8):
        crowd.put(copies(states[n], 2)[1], 40)
    found += [logits(crowd, place, token) for token in range(3, 6)]
    crowd.drop(1)
    crowd.drop(3)
    elsewhere = Rows(decoder, 16)
    elsewhere.put(states[9], 40)
    elsewhere.put(states[10], 40)
    place = elsewhere.put(crowd.take(place), LONG)
    found += [logits(elsewhere, place, token) for token in range(6, 12)]
    for i, (a, b) in enumerate(zip(expected, found)):
        assert torch.equal(a, b), i


@pytest.mark.parametrize("schedule", ["published", "off", "rope"])
@torch.inference_mode()
def test_rows_write_what_the_decoder_writes(schedule: str) -> None:
    """Against plain decoding of one sequence, in float64: five rows of unlike lengths, one leaves and comes back."""
    decoder = make_decoder(*SCHEDULES[schedule]).eval()
    prompts = [torch.randn(n, decoder.cfg.width, dtype=torch.float64) for n in (3, 50, 1, 17, 90)]
    starts = [prefill(decoder, x, Bounds([len(x)])).state for x in prompts]
    rows, pairs = Rows(decoder, 6), [copies(state, 2) for state in starts]
    places = [rows.put(mine, 30) for mine, _ in pairs]
    for token in range(20):
        if token == 7:
            row = rows.take(places[1])
            places[1] = rows.put(row, 30)
        found = rows.step([token] * 6)
        for place, (_, plain) in zip(places, pairs):
            expected = decoder.project(decoder(decoder.embed(torch.tensor([token])), Bounds([1]), state=plain).hidden)
            torch.testing.assert_close(found[place], expected[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [4, 16])
def test_answers_are_those_of_ask_however_many_are_asked(model: LoadedModel, width: int) -> None:
    expected = [model.ask(words(n), pixels(n), times=np.arange(float(len(pixels(n))))).text for n in range(21)]
    alone = [Said(model, n) for n in range(21)]
    for said in alone:
        engine = engine_of(model, width=width)
        engine.submit(said.job)
        run(engine)
    together = [Said(model, n) for n in range(21)]
    engine = engine_of(model, width=width)
    for said in together:
        engine.submit(said.job)
    run(engine)
    assert [said.text[0] for said in together] == [said.text[0] for said in alone] == expected
    assert engine.counts.most_rows > width or width > 4
    assert (engine.rows, engine.held, engine.counts.finished) == (0, 0, 21)


def test_drawn_answers_depend_on_their_seed_alone(model: LoadedModel) -> None:
    style = Style(LONG, temperature=1.0, top_p=0.9, seed=3, choices=3)
    expected = [
        model.ask(
            words(2), pixels(2), times=np.arange(float(len(pixels(2)))), temperature=1.0, top_p=0.9,
            generator=torch.Generator().manual_seed(3 + i),
        ).text
        for i in range(3)
    ]  # fmt: skip
    assert len(set(expected)) == 3
    for company in (0, 6):
        engine, said = engine_of(model), Said(model, 2, style)
        for n in range(company):
            engine.submit(Said(model, n, Style(LONG, temperature=2.0, seed=n)).job)
        engine.submit(said.job)
        run(engine)
        assert [said.text[i] for i in range(3)] == expected


# ---- turns, queue, budget ----


def test_answers_go_on_while_a_long_prompt_is_read(model: LoadedModel) -> None:
    seen: list[int] = []

    def long(pause: Pause) -> Prefilled:
        for _ in range(10):
            seen.append(engine.counts.steps)
            time.sleep(0.02)  # a piece takes longer than a step, so that there is one between
            pause()
        return prefilled(model, 1)

    engine, first = engine_of(model), Said(model, 0)
    engine.submit(first.job)
    engine.submit(Said(model, 1, read=long).job)
    run(engine)
    assert len(first.text[0]) > 0
    assert seen[0] < seen[-1], "steps of the answers between pieces of the prompt"


def test_a_prompt_that_waits_for_frames_holds_nobody_up(model: LoadedModel) -> None:
    engine, there = engine_of(model), [False]
    slow, quick = Said(model, 0, ready=lambda: there[0]), Said(model, 1)
    engine.submit(slow.job)
    engine.submit(quick.job)
    with torch.inference_mode():
        for _ in range(LONG + 3):
            engine.turn()
    assert quick.ends
    assert not slow.ends
    there[0] = True
    run(engine)
    assert slow.ends


def test_who_has_gone_is_gone_within_two_steps(model: LoadedModel) -> None:
    engine = engine_of(model)
    said = [Said(model, n, Style(200, choices=2)) for n in range(6)]
    for s in said:
        engine.submit(s.job)
    with torch.inference_mode():
        while engine.reading or engine.waiting:
            engine.turn()
        assert engine.rows > 6
        for s in said[:5]:
            engine.abort(s.job)
        before = engine.counts.steps
        engine.turn()
    assert {row.job for row in engine.answers.rows} <= {said[5].job}
    assert engine.counts.steps - before <= 2
    run(engine)
    assert engine.held == 0
    assert engine.counts.aborted + engine.counts.finished == 6


def test_of_a_prompt_that_nobody_wants_no_more_is_read(model: LoadedModel) -> None:
    engine, begun, ended = engine_of(model), [0], [False]

    def long(pause: Pause) -> Prefilled:
        try:
            while True:
                begun[0] += 1
                pause()
        finally:
            ended[0] = True

    said = Said(model, 0, read=long)
    engine.submit(said.job)
    with torch.inference_mode():
        engine.turn()
        engine.turn()
        engine.abort(said.job)
        engine.turn()
    assert (begun[0], ended[0], engine.held, engine.reading) == (2, True, 0, 0)


def test_the_queue_and_the_memory_are_bounded(model: LoadedModel) -> None:
    engine = engine_of(model, queue=3, num_bytes=100, prompts=2)
    with pytest.raises(TooLargeError, match=r"would take 0 MB, and the server has 0 MB for all: take fewer frames"):
        engine.submit(Said(model, 0, num_bytes=101).job)
    jobs = [Said(model, n, num_bytes=60) for n in range(3)]
    for said in jobs:
        engine.submit(said.job)
    with pytest.raises(QueueFullError, match="3 requests are waiting") as refused:
        engine.submit(Said(model, 9).job)
    assert refused.value.seconds >= 1
    with torch.inference_mode():
        engine.turn()
    assert (engine.held, engine.waiting) == (60, 2), "two of them do not fit together"
    run(engine)
    assert all(said.ends for said in jobs)
    assert engine.counts.most_rows == 1


def test_priority_goes_first(model: LoadedModel) -> None:
    order: list[int] = []

    def read(number: int, _: Pause) -> Prefilled:
        order.append(number)
        return prefilled(model, number)

    engine = engine_of(model, prompts=1)
    for n, priority in enumerate((5, 0, -1, 0)):
        engine.submit(Said(model, n, priority=priority, read=partial(read, n)).job)
    run(engine)
    assert order == [2, 1, 3, 0]


def test_a_failure_is_of_one_request_alone(model: LoadedModel) -> None:
    def broken(_: Pause) -> Prefilled:
        raise ValueError("no frames")

    def no_number(_: Pause) -> Prefilled:
        start = prefilled(model, 0)
        start.hidden = start.hidden * float("nan")
        return start

    engine = engine_of(model)
    bad, worse, good = Said(model, 0, read=broken), Said(model, 0, read=no_number), Said(model, 1)
    for said in (bad, worse, good):
        engine.submit(said.job)
    run(engine)
    assert str(bad.error) == "no frames"
    assert "not finite" in str(worse.error)
    assert good.ends
    assert (engine.counts.failed, engine.held) == (2, 0)


def test_the_thread_ends_and_says_so(model: LoadedModel) -> None:
    engine = engine_of(model).start()
    said = Said(model, 0, ready=lambda: False)
    engine.submit(said.job)
    engine.stop()
    assert not engine.alive
    assert str(said.error) == "the server is going down"


def test_turns_are_taken_one_at_a_time() -> None:
    told: list[str] = []

    def work(pause: Pause) -> int:
        for word in ("a", "b"):
            told.append(word)
            pause()
        return 3

    turns = Turns(work)
    while not turns.step():
        told.append("-")
    assert ("".join(told), turns.result) == ("a-b-", 3)
    idle = Turns(work)
    idle.close()
    assert idle.ended


# ---- text ----


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "ended"),
    [
        (["ab", "c", "de"], ["cd"], "ab", True),  # over a border of tokens
        (["ab", "c", "xe"], ["cd"], "abcxe", False),  # only its beginning
        (["aab", "aab", "aac"], ["aabaac"], "aab", True),  # begins again within itself
        (["one", " two"], [" two", "one two"], "", True),  # the first of several
        (["a"], ["abc"], "a", False),  # held to the end, then shown
    ],
)
def test_stop_strings_wherever_tokens_end(pieces: list[str], stops: list[str], shown: str, ended: bool) -> None:
    held, text = StopText(stops), ""
    for piece in pieces:
        more, done = held.take(piece)
        text += more
        if done:
            break
    assert done == ended
    assert text + ("" if done else held.held) == shown
    assert not any(stop in text for stop in stops)


def test_a_stop_string_ends_an_answer_of_a_model(model: LoadedModel) -> None:
    whole = Said(model, 4)
    engine = engine_of(model)
    engine.submit(whole.job)
    run(engine)
    text = whole.text[0]
    assert len(text) > 12
    for stop in (text[3:6], text[7:12], text[-3:]):
        said = Said(model, 4, Style(LONG, stop=(stop,)))
        engine.submit(said.job)
        run(engine)
        assert said.text[0] == text[: text.index(stop)]
        assert said.ends[0] == "stop"
    assert engine.rows == 0


def test_no_character_is_cut(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a byte each: the pieces are whole characters."""
    from timeviper.serving import writing

    wanted = "Zeit 🎬 läuft 日本"
    ids = model.tokenizer.encode(wanted)
    assert any(model.tokenizer.decode([i]) == "\ufffd" for i in ids)
    answers = iter([*ids, model.tokenizer.stop_ids[0]])
    monkeypatch.setattr(writing.Writer, "choose", lambda *_: next(answers))
    said, engine = Said(model, 0, Style(200)), engine_of(model)
    engine.submit(said.job)
    run(engine)
    assert said.text[0] == wanted
    assert not any("\ufffd" in piece for piece in said.pieces)
    assert said.ends[0] == "stop"


def test_probabilities_are_told_with_the_text(model: LoadedModel) -> None:
    told: list[dict[str, Any]] = []
    said, engine = Said(model, 0, Style(8, logprobs=3)), engine_of(model)
    said.job.on_text = lambda _, shown: told.extend(shown.logprobs)
    engine.submit(said.job)
    run(engine)
    assert 1 <= len(told) <= 8
    for token in told:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0
        assert len(token["top_logprobs"]) == 3
