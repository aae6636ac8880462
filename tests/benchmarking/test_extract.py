"""Replies and what each evaluator reads in them: the table of the extractors, by the name of the policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.benchmarking.extract import (
    EXTRACTORS,
    ScorerCrash,
    careful,
    first_words_agree,
    first_words_agree_unless_empty,
    lmms_eval,
    lmms_eval_v2,
    timeviper,
    videomme,
)

OPTIONS = ("Pear", "Apple", "Fig", "Plum")
CRASH = "crash"

# reply, then VideoMME v1 (and VLMEvalKit), lmms-eval 0.7.2, lmms-eval 0.7.3 for v2, TimeViper, ours
TABLE = [
    ("B", "B", "B", "B", "B", "B"),
    ("B. Apple", "B", "B", "B", "B", "B"),
    ("(B) Apple", "B", "B", "", "(", "B"),
    ("The answer is B. Apple", "B", "A", "B", "B", "B"),
    ("Best answer: D", "B", "D", "D", "B", "D"),
    ("A man opens the door", "A", "A", "", "A", ""),
    ("I think it is B because A is wrong", "B", "A", "", "I", ""),
    ("the answer is b", "", "", "B", "t", "B"),
    ("Not A but C", "A", "C", "", "N", ""),
    ("", "", "", "", CRASH, ""),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0] or "empty")
def test_each_evaluator_reads_a_reply_its_own_way(row: tuple[str, ...]) -> None:
    reply, *expected = row
    for extract, letter in zip((videomme, lmms_eval, lmms_eval_v2, timeviper, careful), expected):
        if letter == CRASH:
            with pytest.raises(ScorerCrash, match="empty reply"):
                extract(reply, ())
        else:
            assert extract(reply, ()) == letter, extract.__name__


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B.", "B"),
        (" (C) ", "C"),
        ("**D**", "D"),
        ("[A]", "A"),
        ("c", "C"),
        ("B: because it is round", "B"),
        ("Final answer: (C)", "C"),
        ("The correct option is **D**.", "D"),
        ("Option B is right, but the answer is C", "C"),
        ("The answer is a man", ""),
        ("The kite is round.\nB", "B"),
        ("the apple", ""),
        ("Apple.", "B"),
        ("plum", "D"),
        ("I choose C, not D", "C"),
        ("F", ""),
        ("answer: F", ""),
        ("A's colour", ""),
        ("none of these", ""),
        ("!!!!", ""),
    ],
)
def test_ours_takes_what_is_told_for_certain(reply: str, letter: str) -> None:
    assert careful(reply, OPTIONS) == letter


def test_letters_beyond_d_and_texts_of_options() -> None:
    eight = tuple(f"thing {n}" for n in "12345678")
    assert (videomme("H", eight), lmms_eval("H", eight), lmms_eval_v2("H.", eight), careful("H", eight)) == (
        *("", "H", "H", "H"),
    )
    assert lmms_eval_v2("It is thing 3, I think", eight) == "C"
    assert careful("Thing 3", eight) == "C"


def test_the_scorers_of_mlvu_and_lvbench_look_at_brackets() -> None:
    mlvu, lvbench = EXTRACTORS["mlvu"], EXTRACTORS["lvbench"]
    assert [mlvu(reply, ()) for reply in ("B) Apple", "Best Option: (C) Fig", "D", "")] == ["B", "C", "D", ""]
    assert [lvbench(reply, ()) for reply in ("(B) 4", "B", "Best (C", "(b)", "")] == ["B", "B", "B", "b", ""]


@pytest.mark.parametrize(
    ("reply", "right", "official", "lmms"),
    [
        ("(A) a ring", "(A) a ring", True, True),
        ("A", "(A) a ring", True, True),
        ("B", "(A) a ring", False, False),
        ("A man", "(A) a ring", True, True),  # the article
        ("(A)", "(A) a ring", True, True),
        ("", "(A) a ring", True, None),
    ],
)
def test_mvbench_compares_first_words(reply: str, right: str, official: bool, lmms: bool | None) -> None:
    assert first_words_agree(reply, right) is official
    assert first_words_agree_unless_empty(reply, right) is lmms


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ABCDFZabi .():*\nno答案是", max_size=40))
def test_any_reply_is_read_or_not(reply: str) -> None:
    for name, extract in EXTRACTORS.items():
        try:
            found = extract(reply, OPTIONS)
        except ScorerCrash:
            assert (name, reply) == ("timeviper", "")
        else:
            assert isinstance(found, str)
    assert careful(reply, OPTIONS) in ("", *"ABCD")
