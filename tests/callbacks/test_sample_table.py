"""The table of samples: answers token by token, strips, Markdown, and TensorBoard without an imaging library."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_helpers import HYBRID
from torch.utils.tensorboard import SummaryWriter
from viper_helpers import config, make_model, sample

from timeviper.callbacks.samples import Row, as_markdown, describe, frame_strip, log_rows
from timeviper.inference.generate import generate_pack
from timeviper.inference.lockstep import answer_in_step
from timeviper.pack import IGNORE, Pack
from timeviper.tokenizer import Tokenizer


def prompts() -> Pack:
    """Without labels: videos of several lengths, and a text."""
    parts = [sample("2c12v3i", 3, 1), sample("3c", 0, 2), sample("1c4v2i", 1, 3), sample("2c16v3i", 4, 4)]
    return Pack.join([replace(p, labels=torch.full_like(p.ids, IGNORE)) for p in parts])


def test_answers_through_forward_are_those_of_generate() -> None:
    """Also with sequences that stop before the others."""
    model = make_model().eval()
    free = generate_pack(model, prompts(), 70)  # beyond the room that a cache starts with
    got = answer_in_step(model, prompts(), 70, stop_ids=())
    assert [ids.tolist() for ids in got] == [ids.tolist() for ids in free]
    stop = {int(free[0][3]), int(free[2][1])}
    expected = generate_pack(model, prompts(), 70, stop_ids=stop)
    assert len({len(ids) for ids in expected}) > 1
    got = answer_in_step(model, prompts(), 70, stop_ids=stop)
    assert [ids.tolist() for ids in got] == [ids.tolist() for ids in expected]
    assert max(map(int, torch.cat(got))) < HYBRID.vocab_size


def test_an_answer_ends_with_the_context() -> None:
    prompt = sample("2c12v3i", 3, 1)
    model = make_model(replace(config(), decoder=replace(HYBRID, max_tokens=len(prompt.ids) + 2))).eval()
    with pytest.raises(ValueError, match="max_tokens"):
        generate_pack(model, prompt, 10)
    (ids,) = answer_in_step(model, prompt, 10, stop_ids=())
    assert len(ids) == 3


def test_small_frames_are_enlarged_and_large_ones_left() -> None:
    frames = torch.randint(0, 255, (2, 3, 40, 60), dtype=torch.uint8)
    strip = frame_strip(frames)
    assert strip.shape == (120, 2 * 180, 3)
    assert torch.equal(strip[::3, :180:3], frames[0].permute(1, 2, 0))
    assert bool((strip[:, [179, 359]] == 255).all())
    assert frame_strip(torch.zeros(5, 3, 384, 384, dtype=torch.uint8)).shape == (384, 5 * 384, 3)


def test_what_could_not_be_read_or_has_no_pixels_is_no_picture() -> None:
    tokenizer = Tokenizer.load("")
    assert describe(Pack.blank(16), tokenizer, 4) == Row("", "", tokenizer.decode([0]), "", [], b"", (0, 0))
    stored = replace(
        sample("1c8v2i", 2),
        frames=torch.zeros(0, 3, 16, 16, dtype=torch.uint8),
        features={"main": torch.zeros(2, 4, 16)},
        from_features=[True],
    )
    row = describe(stored, tokenizer, 4)
    assert (row.times, row.strip) == ([0.0, 1.0], b"")


def test_text_cannot_break_the_table() -> None:
    row = Row("s/a|b#0", "", "Is <b>this</b> a | or\na `*`?", "yes", [0.5], b"", (0, 0))
    *_, line = as_markdown([(row, "**no** [x](y)")], pictures=True).splitlines()
    assert line.count("|") == 7
    assert "<" not in line
    assert "**" not in line


def test_tensorboard_gets_pictures_without_an_imaging_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # importing it raises ImportError
    row = describe(sample("1c16v2i3a", 4), Tokenizer.load(""), 3)
    writer = SummaryWriter(str(tmp_path))
    with pytest.raises(ImportError):
        writer.add_image("by the library", torch.zeros(3, 4, 4, dtype=torch.uint8))
    log_rows(writer, [(row, "an answer")], 7)
    writer.close()
    (file,) = tmp_path.iterdir()
    assert row.strip in file.read_bytes()
    assert row.strip.startswith(b"\x89PNG")
    assert row.times == [0.0, 2.0, 3.0]
