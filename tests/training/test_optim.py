"""Muon for the matrices inside of blocks, AdamW for all else: one optimizer, on any number of ranks, over a break."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import first_weights, run_ranks, small_recipe, train_all, train_and_export
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from timeviper.config import OptimConfig
from timeviper.training.optim import MatrixMuon, build_optimizer, orthogonal

OPTIM = OptimConfig(name="muon", lr=1e-2, beta2=0.95, weight_decay=0.1, warmup=0.0, schedule="constant")
RECIPE = replace(small_recipe(), optim=OPTIM)


class Block(nn.Module):
    """Names as the model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.ModuleDict(
            {
                "embed": nn.Embedding(7, 4),
                "blocks": nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)]),
                "transv": nn.ModuleDict({"early": nn.Linear(4, 4)}),
            }
        )


def gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


def test_each_parameter_moves_as_by_torchs_own_optimizer() -> None:
    """While rates change, and where some have no gradient at a step: by AdamW the same bits, by Muon what its bfloat16
    leaves of a step."""
    torch.manual_seed(0)
    ours, theirs = Block(), Block()
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, OPTIM)
    assert isinstance(optimizer, MatrixMuon)
    named = dict(theirs.named_parameters())
    hidden = [n for n, p in named.items() if p.ndim == 2 and "embed" not in n]
    assert len(hidden) == 3
    muon = Muon([named[n] for n in hidden], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [named["decoder.embed.weight"]], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = AdamW(groups, betas=(0.9, 0.95), fused=True)
    before = {name: p.detach().clone() for name, p in named.items()}
    for step in range(5):
        for group in (*optimizer.param_groups, *muon.param_groups, *adam.param_groups):
            group["lr"] = 1e-2 / (1 + step)
        for model in (ours, theirs):
            gradients(model, step)
            if step == 2:
                for name, p in model.named_parameters():
                    if "blocks.0" in name:
                        p.grad = None
        optimizer.step()
        muon.step()
        adam.step()
        for name, p in ours.named_parameters():
            moved = (named[name] - before[name]).norm()
            assert (p - named[name]).norm() <= (0.03 * moved if name in hidden else 0), (step, name)
    held = sum(
        v.numel() for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()
    )
    assert held == sum(p.numel() for n, p in named.items() if n in hidden) + 2 * sum(
        p.numel() for n, p in named.items() if n not in hidden
    )


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (5, 1), (128, 384)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_orthogonal_keeps_vectors(shape: tuple[int, int], size: float, dtype: torch.dtype, near: float) -> None:
    """And brings each singular value of a matrix to where the polynomial does, about 1."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * size
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = u @ values.diag() @ v
    found = orthogonal(matrix.to(dtype), dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=near)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_in_bfloat16_it_is_torchs_own_to_the_bit(shape: tuple[int, int]) -> None:
    """As it is computed on accelerators."""
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw").step()
    assert torch.equal(p, orthogonal(p.grad, torch.bfloat16).float() * (-0.2 * 6**0.5))


def test_orthogonal_leaves_nothing_at_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 6), torch.float32), torch.zeros(4, 6))


def test_a_loaded_state_goes_on_to_the_same_bits() -> None:
    torch.manual_seed(0)
    model = Block()
    optimizer = build_optimizer(model, OPTIM)
    for step in range(2):
        gradients(model, step)
        optimizer.step()
    again = Block()
    again.load_state_dict(model.state_dict())
    other = build_optimizer(again, OPTIM)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # what is loaded is otherwise shared
    for who, chosen in ((model, optimizer), (again, other)):
        gradients(who, 2)
        chosen.step()
    for name, p in again.named_parameters():
        assert torch.equal(p, model.state_dict()[name])


def test_what_has_no_matrix_inside_of_a_block_is_left_to_adamw() -> None:
    model = nn.ModuleDict({"projectors": nn.ModuleDict({"main": nn.Linear(4, 4)})})
    assert type(build_optimizer(model, OPTIM)) is AdamW


@pytest.fixture(scope="module")
def one_rank() -> list[dict[str, Tensor]]:
    return [trained.after for trained in run_ranks(1, train_all, [RECIPE])[0]]


def test_two_ranks_take_the_steps_of_one(one_rank: list[dict[str, Tensor]]) -> None:
    """But for rounding, which Muon lets the weakest directions of a gradient grow up to 3.4^5 times."""
    start = run_ranks(1, first_weights, RECIPE)[0]
    for trained in run_ranks(2, train_all, [RECIPE])[0]:
        for name, tensor in one_rank[0].items():
            moved = (tensor - start[name]).norm() if name in start else tensor.norm()
            assert (trained.after[name] - tensor).norm() <= 5e-3 * moved + 1e-6, name


@pytest.mark.parametrize("offload", [False, True])
def test_a_sharded_run_goes_on_over_a_break(offload: bool, tmp_path: Path) -> None:
    recipe = replace(small_recipe(offload_params=offload), optim=OPTIM)
    run_ranks(2, train_and_export, recipe, tmp_path / "export")
