"""What the parts of `bench_gpu.py` share: sizes, time and memory of a run, errors, models with random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_gpu_page import Setting
from torch import Tensor, nn

from timeviper.config import ModelConfig
from timeviper.config.presets import PRESETS
from timeviper.model.layers import RMSNorm
from timeviper.model.mamba2 import Scan
from timeviper.model.transv import Transfer

DTYPE = torch.bfloat16
GATE = 0.5  # of TransV's transfers, which begin shut: so that what they add shows in the logits
PIECE = 4096  # rows that are compared at a time


def tokens(setting: Setting, count: int, least: int = 64) -> int:
    """A length, divided as the setting asks."""
    return count if setting.divide == 1 else max(count // setting.divide, least)


def preset(name: str, setting: Setting) -> ModelConfig:
    """A named size whose widths are divided, too; layout, ratios of heads and tokens a frame stay."""
    model, by = PRESETS[name](), setting.divide
    model.decoder.max_tokens = 1 << 20
    if by == 1:
        return model
    d = model.decoder
    kv, groups = max(d.kv_heads // by, 1), max(d.ssm_groups // by, 2)
    model.decoder = replace(
        d,
        vocab_size=max(d.vocab_size // by, 256),
        width=max(d.width // by // 8 * 8, 32),
        mlp_width=max(d.mlp_width // by, 64),
        heads=kv * (d.heads // d.kv_heads),
        kv_heads=kv,
        head_dim=max(d.head_dim // by, 8),
        ssm_heads=groups * max(d.ssm_heads // d.ssm_groups // by, 2),
        ssm_head_dim=max(d.ssm_head_dim // by // 8 * 8, 8),
        ssm_state=max(d.ssm_state // by, 16),
        ssm_groups=groups,
    )
    small = {"image_size": 84, "width": 32, "layers": 3, "heads": 2, "mlp_width": 64}  # 36 patches, merged to 16
    model.towers = {name: replace(tower, **small) for name, tower in model.towers.items()}
    return model


# ---- time and memory ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Of one run of several."""

    ms: float
    """The median."""
    runs: int


def timed(run: Callable[[], object], device: str, seconds: float = 2.0, most: int = 7, warm: bool = True) -> Timing:
    """Run to warm up (which compiles what must be), then as often as `seconds` allow, 2 to `most` times.

    warm=False: once, as it is, for what is long and has been warmed up by something shorter.
    """
    taken = [one(run, device)]
    if not warm:
        return Timing(taken[0], 1)
    taken = [one(run, device)]
    again = min(max(int(seconds * 1e3 / max(taken[0], 1e-3)), 2), most)
    taken += [one(run, device) for _ in range(again - 1)]
    return Timing(statistics.median(taken), len(taken))


def one(run: Callable[[], object], device: str) -> float:
    """Milliseconds of a run: by the device's own clock where it has one."""
    if device == "cpu":
        begun = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begun)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


class Peak:
    """GB (10^9 bytes) at the highest point inside the `with`: `gb` in all, `extra_gb` above what was held before.

    On a GPU what torch has allocated, on a CPU the memory of the process (Linux).
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.gb = self.extra_gb = 0.0

    def __enter__(self) -> Peak:
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            self.before = _status("VmRSS")
        else:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        peak = _status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()
        self.gb, self.extra_gb = peak / 1e9, (peak - self.before) / 1e9


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


# ---- errors ---------------------------------------------------------------------------------------------


def largest_error(got: Tensor, true: Tensor) -> float:
    """Largest difference, relative to the largest value; NaN where there is one. In pieces: no wide copy of it all."""
    worst, size = (torch.zeros((), dtype=torch.float64, device=got.device) for _ in range(2))
    for a, b in zip(got.detach().split(PIECE), true.detach().split(PIECE)):
        b = b.double()
        worst, size = torch.maximum(worst, (a.double() - b).abs().max()), torch.maximum(size, b.abs().max())
    return float(worst / size)


def mean_error(got: Tensor, true: Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    got, true = got.detach().double(), true.detach().double()
    return float((got - true).norm() / true.norm())


# ---- models ---------------------------------------------------------------------------------------------


@torch.no_grad()
def materialise(model: nn.Module, device: str) -> None:
    """Give a model that was made on the meta device memory and random weights, drawn where they live.

    Towers fill what is inside of them, so inner modules come first. Transfers get a gate that is open.
    """
    model.to_empty(device=device)
    torch.manual_seed(0)
    for module in reversed(list(model.modules())):
        for name in ("reset_parameters", "reset_buffers"):
            if hasattr(module, name):
                getattr(module, name)()
        if isinstance(module, Transfer):
            module.alpha.fill_(GATE)


def random_model(build: Callable[[], nn.Module], device: str) -> nn.Module:
    """A model for inference with bfloat16 weights: nothing of it ever exists in float32 but what stays so (norms, the
    scan's parameters, gates), as training keeps it."""
    with torch.device("meta"):
        model = build()
    model.to(DTYPE)
    for module in model.modules():
        if isinstance(module, (Scan, RMSNorm)):
            module.float()
        elif isinstance(module, Transfer):
            module.alpha.data = module.alpha.data.float()
    materialise(model, device)
    return model.eval().requires_grad_(False)


def weights_gb(model: nn.Module) -> float:
    return sum(p.nbytes for p in model.parameters()) / 1e9
