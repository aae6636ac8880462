"""Maps against dense products, head by head; the command; and what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_helpers import random_run
from model_helpers import HYBRID, PLAIN, PLAIN_GUIDED, PUBLISHED
from typer.testing import CliRunner
from viper_helpers import TOWER, make_model, sample

from timeviper.analysis.cut import mixers
from timeviper.analysis.maps import BlockMap, curve, fitting, see, some
from timeviper.analysis.maps_page import borders, pictures
from timeviper.analysis.options import Words
from timeviper.analysis.subject import AnalysisError
from timeviper.cli.main import app
from timeviper.config import ModelConfig, TransVConfig
from timeviper.errors import ConfigError
from timeviper.pack import Kind


def small(decoder=HYBRID, stages=PUBLISHED) -> ModelConfig:
    return ModelConfig(preset="", towers={"main": TOWER}, decoder=decoder, transv=TransVConfig(stages=dict(stages)))


@pytest.mark.parametrize("without_dt", [False, True])
@torch.no_grad()
def test_maps_are_dense_rows_of_every_block(without_dt: bool) -> None:
    model, pack = make_model(small()).eval(), sample("2c12v3i4a", 3)
    scans: dict[int, tuple] = {}
    for i in range(len(HYBRID.layout)):
        if HYBRID.layout[i] == "M":
            block = model.decoder.blocks[i].mixer.ssm  # pyright: ignore
            block.register_forward_pre_hook(lambda m, args, i=i: scans.update({i: (m, args)}))  # pyright: ignore
    found = {one.block: one for one in see(model, pack, mixers(HYBRID.layout), without_dt)}
    assert sorted(found) == [0, 2, 3, 5, 6]
    for i, (scan, (_, dt, B, C, *_)) in scans.items():
        step = F.softplus(dt + scan.dt_bias)
        sums = (-scan.A_log.exp() * step).cumsum(0)
        repeat = dt.shape[1] // B.shape[1]
        B, C = (t.repeat_interleave(repeat, 1) for t in (B, C))
        dense = torch.einsum("ihn,jhn->hij", C, B) * (sums.T[:, :, None] - sums.T[:, None]).exp().tril()
        dense = dense.tril() if without_dt else (dense * step.T[:, None]).tril()
        share = dense.abs() / dense.abs().sum(-1, keepdim=True)
        torch.testing.assert_close(found[i].mean, share.mean(0).float())
        torch.testing.assert_close(found[i].heads, share.float())  # short enough for a cell a token
        place = torch.arange(dense.shape[1])
        reach = (share * (place[:, None] - place)).sum((1, 2)) / len(place)
        assert found[i].reach == pytest.approx(reach.tolist())
    for i in (2, 5):
        torch.testing.assert_close(found[i].mean.sum(1), torch.ones(found[i].tokens))
    assert [found[i].behind for i in (0, 3, 6)] == ["", "early", "late"]
    assert found[6].tokens < found[3].tokens < found[0].tokens == 21


@torch.no_grad()
def test_cells_are_means_over_their_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pack = make_model(small()).eval(), sample("2c40v5i4a", 10)
    (whole,) = see(model, pack, [0])
    monkeypatch.setattr("timeviper.analysis.maps.PIXELS", 8)
    monkeypatch.setattr("timeviper.analysis.maps.ENTRIES", 700)  # three rows at a time
    (coarse,) = see(model, pack, [0])
    torch.testing.assert_close(coarse.mean, whole.mean)
    cells = torch.arange(51) * 8 // 51
    for r in range(8):
        for c in range(r + 1):
            entries = [whole.heads[0, i, j] for i in range(51) for j in range(i + 1) if (cells[i], cells[j]) == (r, c)]
            assert float(coarse.heads[0, r, c]) == pytest.approx(float(torch.stack(entries).mean()), rel=1e-5)
    for _, picture, _ in pictures(coarse):
        assert picture.shape == (8, 8)
        assert np.isnan(picture[np.triu_indices(8, 1)]).all()
    assert borders(coarse) == [(0, "context"), (0, "video"), (6, "question"), (7, "answer")]


@torch.no_grad()
def test_a_transformer_has_maps_too_and_rotary_rows() -> None:
    model, pack = make_model(small(PLAIN, PLAIN_GUIDED)).eval(), sample("2c12v3i4a", 3)
    found = [*see(model, pack, mixers(PLAIN.layout))]
    assert {one.kind for one in found} == {"attention"}
    for one in found:
        torch.testing.assert_close(one.mean.sum(1), torch.ones(one.tokens))
        assert not one.mean.triu(1).any()


def test_a_kernel_without_content_lies_on_its_own_null_line() -> None:
    from timeviper.analysis.nulls import kernel

    kind = torch.tensor([Kind.CONTEXT] * 4 + [Kind.VISION] * 40 + [Kind.INSTRUCTION] * 6 + [Kind.ANSWER] * 5)
    rows = kernel(55, 7.0).float()
    found = curve(BlockMap(0, "mamba", "", 55, rows[None], rows, [0.0], kind))
    assert found.half == pytest.approx(7.0, rel=1e-3)
    for part in found.to.values():
        assert part["same reach"] == pytest.approx(part["measured"], abs=1e-4)
    assert set(found.by_kind) == {"sink", "context", "vision", "instruction", "answer"}


def test_of_many_blocks_attention_and_some_scans_are_drawn() -> None:
    one = torch.zeros(1, 1)
    maps = [BlockMap(i, "attention" if i % 10 == 3 else "mamba", "", 1, one[None], one, [0.0], one) for i in range(40)]
    drawn = [m.block for m in some(maps)]
    assert len(drawn) == 12
    assert {3, 13, 23, 33} <= set(drawn)
    assert (drawn[0], drawn[-1]) == (0, 39)
    assert some(maps[:6]) == maps[:6]


def test_the_command_writes_maps(tmp_path: Path, world: Path, cli) -> None:
    run = random_run(tmp_path / "run", val=world / "val/videos")
    words = ["analyse", "maps", str(run), "--without-dt", "--blocks", "0,3"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "share of attention to vision" in done.stdout
    folder = run / "analysis"
    numbers = json.loads((folder / "maps.json").read_text())
    assert numbers["without_dt"] is True
    assert [one["block"] for one in numbers["curves"]] == [0, 3]
    assert {name.split("/")[0] for name in np.load(folder / "maps.npz").files} == {"block0", "block3"}
    page = (folder / "maps.html").read_text()
    assert page.count("<svg") == 2 * 3 + 6  # curves in two widths, maps in one
    key = numbers["sample"]

    failed = cli("analyse", "maps", str(run), "--sample", f"{key}9", check=False)
    assert failed.returncode == 1
    assert "is no held-out sample" in failed.stderr
    assert key.partition("#")[0] in failed.stderr  # the nearest
    assert "--debug" not in failed.stderr


def test_long_samples_and_text_alone_are_refused() -> None:
    def item(frames: int, tokens: int) -> Any:
        return SimpleNamespace(unit=SimpleNamespace(key="mine/a"), num_frames=frames, tokens=tokens)

    with pytest.raises(AnalysisError, match=r"5,000 tokens, 300 frames: .* end at 4,096. `timeviper look QUESTION"):
        fitting(item(300, 5000))
    with pytest.raises(AnalysisError, match=r"data.frames.max_frames=122$"):
        fitting(item(300, 5000))
    with pytest.raises(AnalysisError, match="mine/a has no video"):
        fitting(item(0, 20))
    fitting(item(300, 4096))


@pytest.mark.parametrize("typed", ["1", "0,99", "x", "", "-1"])
def test_blocks_that_do_not_mix_are_named(typed: str) -> None:
    words = Words("analyse maps", [])
    words.own["--blocks"] = typed
    assert set(words.blocks("--blocks", "M-*") or ()) <= {0}
    with pytest.raises(ConfigError, match=r"names blocks of M-\* where tokens meet, with commas between: 0, 2\."):
        words.check()
