"""Replies and what each evaluator reads in them: the table of the extractors, by the name of the policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.benchmarking.agree import AGREEMENTS
from timeviper.benchmarking.extract import (
    EXTRACTORS,
    ScorerCrash,
    careful,
    lmms_eval,
    lmms_eval_v2,
    timeviper,
    videomme,
    vlmeval_inferred,
)
from timeviper.benchmarking.item import Item, VideoRef

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


def test_others_look_for_a_letter_in_their_own_places() -> None:
    vnbench, tempcompass, v2 = EXTRACTORS["vnbench"], EXTRACTORS["tempcompass"], EXTRACTORS["vlmeval-v2"]
    replies = ("B", "It is B. A is wrong", "C, And not B", "none")
    assert [vnbench(reply, ()) for reply in replies] == ["B", "B", "A", ""]
    assert [tempcompass(reply, ()) for reply in ("B", "B. up", "B) up", "B up", "E", "")] == ["B", "B", "B", "", "", ""]
    assert [v2(reply, ()) for reply in ("Final Answer: G", "Best answer: H", "no")] == ["G", "H", ""]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("It is (B).", "B"),
        ("B is what one sees when all is said and done", ""),  # too far from the end, and no option's text
        ("A or B", ""),
        ("the fruit is an apple", "B"),
        ("an apple or a fig", ""),
        ("apple " * 20, ""),  # far longer than the options
        ("Z", ""),
        ("Failed to obtain answer via API: B", ""),
        ("", ""),
    ],
)
def test_vlmevalkit_infers_from_letters_and_texts(reply: str, letter: str) -> None:
    assert vlmeval_inferred(reply, OPTIONS) == letter


RING = Item("q", VideoRef("v"), "mcq", "What?", ("a ring", "the ball is red"), 0, ("a ring",))
BALL = Item("q", VideoRef("v"), "mcq", "What?", ("a ring", "the ball is red"), 1, ("the ball is red",))


@pytest.mark.parametrize(
    ("reply", "item", "official", "lmms", "vlmeval"),
    [
        ("(A) a ring", RING, True, True, True),
        ("A", RING, True, True, True),
        ("B", RING, False, False, False),
        ("A man", RING, True, True, True),  # the article
        ("(A)", RING, True, True, True),
        ("", RING, True, None, True),
        ("the ball is red", BALL, False, False, True),  # inferred from the text
        ("who knows", BALL, False, False, None),
    ],
)
def test_mvbench_compares_first_words(
    reply: str, item: Item, official: bool, lmms: bool | None, vlmeval: bool | None
) -> None:
    names = ("mvbench", "mvbench-lmms", "mvbench-vlmeval")
    assert [AGREEMENTS[name](reply, item) for name in names] == [official, lmms, vlmeval]


def test_vlmevalkit_reads_mlvu_before_a_bracket_or_infers() -> None:
    replies = ("B", "B) the ball", "(A) or (B)", "the ball is red", "who knows")
    assert [AGREEMENTS["mlvu-vlmeval"](reply, BALL) for reply in replies] == [True, True, None, True, None]


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
