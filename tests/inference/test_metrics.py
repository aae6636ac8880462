from __future__ import annotations

import pytest

from timeviper.datamodules.when import parse_interval
from timeviper.inference.metrics import Answered, chance, interval_iou, is_right, same_words, score


def test_intervals() -> None:
    assert parse_interval("from 2.0 to 5.5 seconds") == (2.0, 5.5)
    assert parse_interval("the 3rd: 2 to 4") == (2.0, 4.0)
    assert parse_interval("at 5") is None
    assert parse_interval("from 5 to 2") is None
    assert interval_iou("2 to 6", "4 to 8") == pytest.approx(1 / 3)
    assert interval_iou("1 to 2", "3 to 4") == 0
    assert interval_iou("nothing", "3 to 4") == 0
    assert interval_iou("3 to 4", "3.0 to 4.0") == 1


def test_words() -> None:
    assert same_words(" Red  circle.", "red circle")
    assert not same_words("red", "red circle")
    assert is_right("when", "from 2 to 4 seconds", "from 2 to 5 seconds")
    assert not is_right("when", "from 2 to 3 seconds", "from 2 to 5 seconds")


def test_score_and_chance_by_type() -> None:
    answers = [
        Answered("1", "colour", "red", "red"),
        Answered("2", "colour", "red", "blue"),
        Answered("3", "colour", "red", "red"),
        Answered("4", "when", "from 1 to 3 seconds", "from 1 to 2 seconds"),
        Answered("5", "when", "never", "from 1 to 3 seconds"),
    ]
    scores = score(answers)
    assert scores.accuracy == pytest.approx({"overall": 3 / 5, "colour": 2 / 3, "when": 1 / 2})
    assert scores.miou == pytest.approx(0.25)
    # Each red guesses right with 1 of 2 others, blue with none; the two intervals overlap by half.
    assert chance(answers).accuracy["colour"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert chance(answers).miou == pytest.approx(0.5)


def test_chance_knows_what_a_question_tells() -> None:
    answers = [
        Answered("1", "colour", "", "the ring is red", "What colour is the ring?"),
        Answered("2", "colour", "", "the cross is red", "Name the colour of the cross."),
        Answered("2b", "colour", "", "the square is blue", "Which colour does the square have?"),
        Answered("3", "order", "", "a red ring", "What follows the blue cross?"),
        Answered("4", "order", "", "a blue cross", "What comes before the red ring?"),
        Answered("5", "choice", "", "red", "Is it red or blue?"),
        Answered("6", "choice", "", "blue", "Is it red or blue?"),
    ]
    accuracy = chance(answers).accuracy
    assert accuracy["colour"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert accuracy["order"] == 0.0
    assert accuracy["choice"] == 0.0
