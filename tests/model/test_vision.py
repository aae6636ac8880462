"""Vision towers: parity with transformers, weights from folders, frames of any size, frozen chunks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tree import ROOT

from timeviper.config import TowerConfig
from timeviper.model.vision import tower as vision
from timeviper.model.vision.build import build_tower
from timeviper.model.vision.pretrained import Pretrained
from timeviper.model.vision.tower import to_pixels

SMALL = TowerConfig(family="siglip", image_size=30, patch_size=7, width=32, layers=3, heads=2, mlp_width=64, tokens=4)
VIT = TowerConfig(
    family="vit", image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_width=64, feature_layer=-1
)
DINO = replace(SMALL, family="dinov2", image_size=28)
REGISTERS = replace(DINO, registers=4)


def frames(count: int, size: int, seed: int = 0) -> torch.Tensor:
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole_encoder(cfg: TowerConfig):
    """The uncut encoder of transformers, all weights away from zero."""
    import transformers as hf

    shared: dict[str, Any] = dict(hidden_size=cfg.width, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads)
    shared |= dict(image_size=cfg.image_size, patch_size=cfg.patch_size)
    torch.manual_seed(0)
    if cfg.family == "siglip":
        model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**shared, intermediate_size=cfg.mlp_width))
    elif cfg.registers:
        model = hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**shared, mlp_ratio=2, num_register_tokens=cfg.registers)
        )
    else:
        model = hf.Dinov2Model(hf.Dinov2Config(**shared, mlp_ratio=2))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


@pytest.mark.parametrize("cfg", [SMALL, DINO, REGISTERS], ids=["siglip", "dinov2", "dinov2-registers"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_features_are_hidden_states_of_transformers(cfg: TowerConfig, layer: int, tmp_path: Path) -> None:
    theirs = whole_encoder(cfg)
    theirs.save_pretrained(tmp_path)
    cfg = replace(cfg, feature_layer=layer, weights=str(tmp_path))
    tower = build_tower(cfg)
    x = frames(3, cfg.image_size)
    normalisation = vision.IMAGENET if cfg.family == "dinov2" else vision.HALF
    hidden = theirs(to_pixels(x, cfg.image_size, normalisation), output_hidden_states=True).hidden_states
    assert hidden is not None
    assert len(hidden) == cfg.layers + 1
    expected = hidden[layer][:, -tower.num_patches :]  # class and register tokens come first
    assert tower.num_patches == (cfg.image_size // cfg.patch_size) ** 2
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-4)
    blocks = [n for n in tower.state_dict() if n.endswith(("layer_norm1.weight", "norm1.weight"))]
    assert len(blocks) == cfg.layers + 1 + layer  # nothing is built that features do not pass


@pytest.mark.parametrize("cfg", [SMALL, DINO, REGISTERS], ids=["siglip", "dinov2", "dinov2-registers"])
def test_weights_of_another_image_size(cfg: TowerConfig, tmp_path: Path) -> None:
    """The position table is resized once, as transformers does in every forward."""
    theirs = whole_encoder(cfg)
    theirs.save_pretrained(tmp_path)
    size = cfg.image_size + 3 * cfg.patch_size
    tower = build_tower(replace(cfg, image_size=size, weights=str(tmp_path)))
    x = frames(2, size)
    normalisation = vision.IMAGENET if cfg.family == "dinov2" else vision.HALF
    more = {"interpolate_pos_encoding": True} if cfg.family == "siglip" else {}
    out = theirs(to_pixels(x, size, normalisation), output_hidden_states=True, **more)
    torch.testing.assert_close(tower(x), out.hidden_states[-2][:, -tower.num_patches :], atol=1e-5, rtol=1e-4)


def test_a_folder_with_another_encoder_is_refused(tmp_path: Path) -> None:
    whole_encoder(SMALL).save_pretrained(tmp_path)
    cfg = replace(SMALL, weights=str(tmp_path), width=64, layers=4)
    with pytest.raises(ValueError, match=r"hidden_size is 32, not 64.*num_hidden_layers is 3, not 4"):
        build_tower(cfg)
    with pytest.raises(ValueError, match="has no config"):
        build_tower(replace(SMALL, weights=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("cfg", [VIT, SMALL, DINO, REGISTERS], ids=["vit", "siglip", "dinov2", "registers"])
def test_meta_then_reset_equals_direct(cfg: TowerConfig) -> None:
    with torch.device("meta"):
        late = build_tower(cfg)
    assert all(p.is_meta for p in late.parameters())
    late.to_empty(device="cpu")
    for p in late.parameters():
        p.data.fill_(float("nan"))
    torch.manual_seed(3)
    late.reset_parameters()
    if isinstance(late, Pretrained):
        late.reset_buffers()
    direct = build_tower(cfg)
    torch.manual_seed(3)
    direct.reset_parameters()
    x = frames(2, cfg.image_size)
    assert torch.equal(late(x), direct(x))


def test_frozen_tower_encodes_in_chunks_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = build_tower(VIT)
    x = frames(7, 32)
    learning = tower(x, 4)
    assert learning.requires_grad
    seen: list[int] = []
    features = tower.features
    monkeypatch.setattr(tower, "features", lambda pixels: seen.append(len(pixels)) or features(pixels))
    monkeypatch.setattr(vision, "FRAMES_PER_CHUNK", 3)
    tower.requires_grad_(False)
    frozen = tower(x, 4)
    assert seen == [3, 3, 3]  # the last one filled up
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, learning.detach())


@pytest.mark.parametrize("cfg", [VIT, SMALL, REGISTERS], ids=["vit", "siglip", "registers"])
def test_no_frames_give_no_features_but_a_gradient(cfg: TowerConfig) -> None:
    """Under sharding every rank must take part in the reduction of every gradient."""
    tower = build_tower(cfg)
    out = tower(frames(0, 20), cfg.tokens)
    assert out.shape == (0, cfg.tokens, cfg.width)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in tower.parameters())


def test_frames_of_another_size_and_wrong_frames() -> None:
    half = torch.full((1, 3, 10, 20), 100, dtype=torch.uint8)
    half[..., 10:] = 200
    x = to_pixels(half, 16, ((0.0,) * 3, (1 / 255,) * 3))
    assert x.shape == (1, 3, 16, 16)
    torch.testing.assert_close(x, x.round())  # whole levels
    assert x[0, 0, 0, 0].item() == pytest.approx(100, abs=1)
    assert x[0, 2, 15, 15].item() == pytest.approx(200, abs=1)
    with pytest.raises(ValueError, match=r"uint8 \[F, 3, H, W\], got torch.float32"):
        to_pixels(half.float(), 16, vision.HALF)
    with pytest.raises(ValueError, match=r"\[1, 10, 20, 3\]"):
        to_pixels(half.permute(0, 2, 3, 1), 16, vision.HALF)


def test_bfloat16_tower() -> None:
    assert build_tower(VIT).to(torch.bfloat16)(frames(2, 32), 4).dtype == torch.bfloat16


def test_transformers_finds_the_right_kernels_package(tmp_path: Path) -> None:
    """From the repository's root, a distribution called `kernels` and our folder of that name stay apart."""
    package = tmp_path / "kernels"
    package.mkdir()
    # Of the version that transformers asks for, so that it really imports it.
    names = ("CUDAProperties", "Device", "LayerRepository", "LocalLayerRepository", "FuncRepository", "Mode")
    names += ("get_kernel", "register_kernel_mapping", "replace_kernel_forward_from_hub", "kernelize")
    lines = [f"class {n}:\n    def __init__(self, *a, **k): ..." for n in names]
    lines += ["def __getattr__(name):\n    return lambda *a, **k: (lambda x: x)"]
    (package / "__init__.py").write_text("\n".join(lines))
    (package / "layer.py").write_text("\n".join(lines))
    info = tmp_path / "kernels-0.18.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.3\n")
    (info / "RECORD").write_text("kernels/__init__.py,,\n")
    (info / "top_level.txt").write_text("kernels\n")
    code = """
import kernels, sys, torch
assert kernels.__file__.startswith(sys.argv[1]), kernels.__file__
import transformers
from timeviper.config import TowerConfig
from timeviper.model.vision.build import build_tower
cfg = TowerConfig(image_size=28, width=32, layers=2, heads=2, mlp_width=64)
print(tuple(build_tower(cfg)(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)).shape))
import timeviper.kernels.attention
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(1, 4, 32)" in done.stdout


def test_building_a_vit_imports_no_transformers() -> None:
    code = "import sys, timeviper.model.viper; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
