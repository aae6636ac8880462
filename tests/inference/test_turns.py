"""Conversations whose turns have media of their own, under every schedule: what is learned is what is asked later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from tree import ROOT

from timeviper.config import Recipe
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.video import Frames
from timeviper.datamodules.reader import build_pack
from timeviper.inference.question import Question, read_question
from timeviper.kernels.bounds import Bounds
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Pack
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model

TOKENIZER = Tokenizer.load()
STAGE2 = ROOT / "recipes/tiny/stage2_instruct.yaml"
SELECTS = {
    "uniform": ("select=uniform",),
    "attention": ("select=attention",),
    "question": ("select=attention", "query=question"),
    "mamba": ("select=mamba", "layer=7"),
}
SIZES = (5, 3, 4)  # frames of the media of each turn; the second turn has two
# float32 through ten blocks; another choice of tokens moves logits by 0.1 and more
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 2e-4}


def talk() -> list[dict[str, str]]:
    said = (("<video>\nWhat is red?", "a ring"), ("<video>\n<image>\nAnd here?", "two dots"), ("<video>\nNow?", "none"))
    return [{"role": role, "content": text} for turn in said for role, text in zip(("user", "assistant"), turn)]


def media(seed: int) -> list[Frames]:
    rng = np.random.default_rng(seed)

    def frames(count: int, kind: str = "video") -> Frames:
        pixels = rng.integers(0, 255, (count, 3, 32, 32), dtype=np.uint8)
        seconds = float(count) if kind == "video" else 0.0
        return Frames(pixels, np.arange(count, dtype=np.float64), seconds, count, 1.0, kind)  # pyright: ignore[reportArgumentType]

    return [frames(SIZES[0]), frames(SIZES[1]), frames(1, "image"), frames(SIZES[2])]


def model_of(select: str, *settings: str) -> tuple[Recipe, TimeViper]:
    stage = [f"model.transv.stages.late.{setting}" for setting in (*SELECTS[select], "keep=0.2")]
    recipe = load_recipe(STAGE2, ['train.init_from=""', "model.transv.gate=0.5", *stage, *settings])
    model = build_model(recipe)
    assert isinstance(model, TimeViper)
    return recipe, model.eval()


def learned(model: TimeViper, pack: Pack) -> list[Tensor]:
    """What predicts each answer token of each sequence that has any, `[n, V]` each."""
    with torch.no_grad():
        found = model(pack, label_logits=True).label_logits
    counts = [int((part != IGNORE).sum()) for part in pack.labels.split(pack.lengths)]
    return [part for part in found.split(counts) if len(part)]


def asked(recipe: Recipe, model: TimeViper, turns: int, every: list[Frames], pieces: int, answer: Tensor) -> Tensor:
    """The same as it is written: the conversation up to the question of that turn, then token after token."""
    shown = every[: (1, 3, 4)[turns - 1]]
    question = Question(talk()[: 2 * turns - 1], shown)
    _, read = read_question(
        model, TOKENIZER, pack_format(recipe), question, tokens_per_piece=pieces, max_new_tokens=len(answer)
    )
    hidden = [read.hidden]
    with torch.inference_mode():
        for token in answer[:-1]:
            x = model.decoder.embed(token[None])
            hidden.append(model.decoder(x, Bounds([1]), None, read.state).hidden)
        return model.decoder.project(torch.cat(hidden))


@pytest.mark.parametrize("select", SELECTS)
def test_each_supervised_answer_is_learned_as_it_is_written(select: str) -> None:
    """Whole and split, the prompt read whole and in pieces."""
    for turns in ("whole", "split"):
        recipe, model = model_of(select, f"data.turns={turns}")
        every = media(0)
        pack = build_pack(TOKENIZER, pack_format(recipe), talk(), every)
        learns = learned(model, pack)
        labels = [part[part != IGNORE] for part in pack.labels.split(pack.lengths)]
        if turns == "whole" and select == "uniform":  # every answer of one sequence
            cuts = (pack.labels != IGNORE).int().diff(prepend=torch.zeros(1, dtype=torch.int32))
            starts = (cuts == 1).nonzero().flatten().tolist()
            lengths = [int((pack.labels[a:b] != IGNORE).sum()) for a, b in zip(starts, [*starts[1:], None])]
            learns, labels = [*learns[0].split(lengths)], [*labels[0].split(lengths)]
        numbers = (1, 2, 3) if turns == "split" or select == "uniform" else (3,)
        assert len(learns) == len(labels) == len(numbers)
        for number, logits, answer in zip(numbers, learns, labels):
            for pieces in (0, 24):
                assert_close(asked(recipe, model, number, every, pieces, answer), logits, **CLOSE)


@pytest.mark.parametrize("select", SELECTS)
def test_later_turns_change_no_supervised_answer_before_them(select: str) -> None:
    """Their media, and what is asked about them. Where a question ranks, a whole conversation supervises its last
    answer alone, and split, each turn chooses for itself."""
    recipe, model = model_of(select, "data.turns=split")
    other = talk()
    other[4] = {"role": "user", "content": "<video>\nHow many rings are there, and which is the largest?"}
    packs = [
        build_pack(TOKENIZER, pack_format(recipe), messages, [*media(0)[:3], media(seed)[3]])
        for messages, seed in ((talk(), 0), (other, 1))
    ]
    first, second = (learned(model, pack) for pack in packs)
    for a, b in zip(first[:2], second[:2]):
        assert_close(a, b, **CLOSE)
    assert (first[2][0] - second[2][0]).abs().max() > 10 * CLOSE["atol"]
    whole = build_pack(TOKENIZER, pack_format(model_of(select)[0]), talk(), media(0))
    answers = (whole.labels != IGNORE).int().diff(prepend=torch.zeros(1, dtype=torch.int32)).eq(1).sum()
    assert int(answers) == (3 if select == "uniform" else 1)
