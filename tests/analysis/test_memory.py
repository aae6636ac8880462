"""The memory of a model whose steps are known, from its hooks to the page; and what a person mistypes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from export_helpers import random_run
from model_helpers import PUBLISHED
from viper_helpers import config, make_model, sample

from timeviper.analysis.halflife import LN2
from timeviper.analysis.memory import BlockSums, Memory, mamba_blocks, summary, watching
from timeviper.analysis.options import Words
from timeviper.config import DataConfig, FramesConfig, ModelConfig, Recipe
from timeviper.errors import ConfigError
from timeviper.model.mamba2 import Mamba2
from timeviper.model.viper import TimeViper

STEP, DECAY = 0.1, 0.05  # every head forgets 0.005 nats a token


def steady() -> TimeViper:
    """A model whose steps do not depend on what it sees."""
    model = make_model(config(PUBLISHED))
    with torch.no_grad():
        for block in model.decoder.blocks:
            if isinstance(block.mixer, Mamba2):
                block.mixer.in_proj.weight[-block.mixer.heads :] = 0
                block.mixer.ssm.dt_bias.fill_(math.log(math.expm1(STEP)))
                block.mixer.ssm.A_log.fill_(math.log(DECAY))
    return model


def recipe(model: ModelConfig, max_frames: int) -> Recipe:
    return Recipe(name="steady", model=model, data=DataConfig(frames=FramesConfig(fps=1, max_frames=max_frames)))


def measured(at: float = 60, max_frames: int = 60, trained: int = 60) -> Memory:
    model, sums = steady(), dict[int, BlockSums]()
    packs = [sample("2c40v5i3a", 10, 1), sample("2c24v4i2a", 6, 2)]
    for pack in packs:
        with watching(model.decoder, pack, sums), torch.no_grad():
            model(pack)
    cfg = config(PUBLISHED)
    return summary(recipe(cfg, max_frames), recipe(cfg, trained), sums, 16, 2, at)


def test_a_model_of_known_steps_has_the_seconds_of_the_formula() -> None:
    memory = measured()
    assert [one.block for one in memory.blocks] == mamba_blocks(steady().decoder)
    rate, keep = STEP * DECAY, {"": 1.0, "early": 0.5, "late": 0.2}
    for one in memory.blocks:
        kept = (int(keep[one.behind] * 40 + 1e-9) + int(keep[one.behind] * 24 + 1e-9)) / 16  # of 4 tokens a frame
        assert one.tokens == pytest.approx([LN2 / rate] * 6, rel=1e-12)
        assert one.seconds == pytest.approx([LN2 / (rate * kept)] * 6, rel=1e-12)
        assert one.survival == pytest.approx([math.exp(-60 * kept * rate)] * 6, rel=1e-12)
        assert one.survival_at_answer == pytest.approx([math.exp(-(60 * kept + 4.5) * rate)] * 6, rel=1e-12)
        assert one.censored == [1.0] * 6  # 139 tokens are more than a sample has
        assert one.median == [math.inf] * 6
    assert {one.behind for one in memory.blocks} == {"", "early", "late"}
    assert memory.warnings == []


def test_a_stage_that_keeps_half_doubles_the_seconds() -> None:
    seconds_of = {one.behind: one.seconds[0] for one in measured().blocks}
    assert seconds_of["early"] / seconds_of[""] == pytest.approx(2)


def test_longer_than_training_and_forgotten_is_a_warning() -> None:
    """3,600 frames x 4 tokens x 0.005 nats: exp(-72) is left in block 0."""
    (one,) = measured(at=3600, max_frames=3600, trained=64).warnings
    assert "A video of 3600 s is 3,600 frames, 14,400 vision tokens; training saw 64 frames at most" in one
    assert "block 0: 5.4e-32" in one
    assert measured(at=3600, max_frames=3600, trained=3600).warnings == []  # seen in training: no warning


def test_frames_that_are_not_read_are_told_and_counted() -> None:
    memory = measured(at=3600, max_frames=60)
    assert "Of 3600 s of video 60 frames are read" in memory.warnings[0]
    assert memory.blocks[0].survival[0] == pytest.approx(math.exp(-60 * 4 * STEP * DECAY))


def test_watching_leaves_the_model_as_it_was() -> None:
    model, pack = steady(), sample("2c12v3i4a", 3)
    with torch.no_grad():
        before = model(pack).loss_sum
        with watching(model.decoder, pack, {}):
            assert torch.equal(model(pack).loss_sum, before)
    assert model.decoder.watcher is None
    assert not any(module._forward_pre_hooks for module in model.modules())


def asked(*words: str) -> Words:
    return Words("analyse memory", words, ("at", "samples"))


@pytest.mark.parametrize(("text", "wanted"), [("600", 600), ("600s", 600), ("1.5m", 90), ("2h", 7200), ("10min", 600)])
def test_times_are_read_as_people_write_them(text: str, wanted: float) -> None:
    assert asked(f"at={text}").seconds("at", 1.0) == wanted


@pytest.mark.parametrize("text", ["", "0s", "-1", "soon", "10 parsecs"])
def test_other_times_are_refused(text: str) -> None:
    words = asked(f"at={text}")
    words.seconds("at", 1.0)
    with pytest.raises(ConfigError, match="must be a time above 0, such as 600s, 10m or 2h"):
        words.check()


def test_words_are_told_apart() -> None:
    found = asked("at=5m", "data.frames.fps=2")
    assert (found.own, found.overrides, found.seconds("samples", 7.0)) == ({"at": "5m"}, ["data.frames.fps=2"], 7.0)
    with pytest.raises(ConfigError, match=r"no setting of analyse memory, which has at, samples, .* mean samples"):
        asked("sample=3").check()
    with pytest.raises(ConfigError, match=r"is no setting of report, and those of the run have a dot in them."):
        Words("report", ["samples=3"]).check()


def test_the_command_writes_a_page_its_numbers_and_its_pictures(tmp_path: Path, world: Path, cli) -> None:
    run = random_run(tmp_path / "run", val=world / "val/videos")
    said = cli("analyse", "memory", str(run), "at=120s", "samples=3", "data.frames.max_frames=120").stdout
    assert "warning: A video of 120 s is 120 frames, 480 vision tokens; training saw 12 frames at most." in said
    folder = run / "analysis"
    numbers = json.loads((folder / "memory.json").read_text())
    assert [one["block"] for one in numbers["memory"]["blocks"]] == [0, 2, 5, 7]
    assert numbers["memory"]["frames"] == 120
    page = (folder / "memory.html").read_text()
    assert "What the state remembers: stage2_instruct" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert len(list(folder.glob("memory-*.svg"))) == 4


def test_a_transformer_has_no_half_life(tmp_path: Path, world: Path, cli) -> None:
    run = random_run(
        tmp_path / "run", "model.decoder.family=qwen2", "model.decoder.layout='*-*-*-*-*-'", val=world / "val/videos"
    )
    done = cli("analyse", "memory", str(run), check=False)
    assert done.returncode == 1
    assert "has no Mamba block" in done.stderr
    assert "timeviper analyse maps" in done.stderr
    assert "Traceback" not in done.stderr
