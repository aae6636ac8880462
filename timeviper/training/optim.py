"""Parameter groups and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from timeviper.config import OptimConfig, Recipe
from timeviper.config.curriculum import keep_at, trainable_at
from timeviper.model.viper import part_of
from timeviper.parallel import plain_name, whole_here

# Parameters that weight decay would pull away from where they belong: decay rates and step sizes of
# the state space, skip gains, transfer gates. Norms and biases are recognised by their dimension. Of adapters decay
# would pull the product back to 0, that is, to the model before tuning; what bounds them is their rank.
NO_DECAY = ("A_log", "D", "dt_bias", "alpha", "lora_A", "lora_B")


def lr_scale(step: int, steps: int, cfg: OptimConfig) -> float:
    """Learning rate at a step (from 0) as a share of the peak: linear warm-up, then the schedule."""
    warmup = round(cfg.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if cfg.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return cfg.final_lr + (1 - cfg.final_lr) * fall


class MatrixMuon(AdamW):
    """AdamW, and Muon for the groups with `muon`: the momentum of a matrix's gradient made orthogonal, scaled so that
    AdamW's rate and decay serve both (Jordan, "Muon", 2024; Liu et al., arXiv 2502.16982).

    As torch.optim.Muon, which makes it orthogonal in bfloat16 everywhere: on CPUs without instructions for that, more
    than half of the time of a tiny step.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        every = self.param_groups
        for group in every:
            for p in group["params"] if group["muon"] else ():
                if p.grad is not None:
                    self._step_matrix(p, p.grad, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every

    def _step_matrix(self, p: nn.Parameter, grad: Tensor, lr: float, weight_decay: float) -> None:
        # Plain where this rank has all of them, in which a step takes a third of the time.
        matrix, grad, momentum = map(whole_here, (p, grad, self.state[p]["momentum_buffer"]))
        momentum.lerp_(grad, 1 - self.MOMENTUM)
        precision = matrix.dtype if matrix.device.type == "cpu" else torch.bfloat16
        update = orthogonal(grad.lerp(momentum, self.MOMENTUM), precision)
        matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-0.2 * lr * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """`[N, M]` with its singular values brought to about 1 (0.7 to 1.2) and its singular vectors kept, by five
    Newton-Schulz steps with Jordan's coefficients, in a precision that is also the result's."""
    x = matrix.to(precision)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> AdamW:
    """The optimizer of the parameters that learn; one group per part and kind of update, its peak rate in `peak`."""
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays = p.ndim >= 2 and name.rsplit(".", 1)[-1] not in NO_DECAY
            muon = cfg.name == "muon" and decays and is_hidden_matrix(name, p)
            groups.setdefault((part_of(name), decays, muon), []).append(p)
    if not groups:
        raise ValueError("nothing to train: no parameter belongs to a part named in train.trainable")
    given = [
        {
            "params": params,
            "lr": cfg.lrs.get(part) or cfg.lr,
            "peak": cfg.lrs.get(part) or cfg.lr,
            "weight_decay": cfg.weight_decay if decays else 0.0,
            "part": part,
            **({"muon": muon} if cfg.name == "muon" else {}),
        }
        for (part, decays, muon), params in groups.items()
    ]
    betas = (cfg.beta1, cfg.beta2)
    # fused: one call for all tensors; with sharded tensors the per-tensor form is 8 times slower
    matrices = any(muon for *_, muon in groups)
    optimizer = (MatrixMuon if matrices else AdamW)(given, betas=betas, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:  # now, not at a part's first step: a checkpoint before it holds the same tensors
            optimizer.state[p] = _first_state(p, group.get("muon", False))
    return optimizer


def is_hidden_matrix(name: str, p: nn.Parameter) -> bool:
    """What Muon is for: the maps inside of blocks and transfers, not embeddings, the head or convolutions."""
    return p.ndim == 2 and plain_name(name).startswith(("decoder.blocks.", "decoder.transv.")) and "conv" not in name


def _first_state(p: nn.Parameter, muon: bool) -> dict[str, Tensor]:
    means = ("momentum_buffer",) if muon else ("exp_avg", "exp_avg_sq")
    # (AdamW's way of loading wants a step everywhere.)
    return {"step": torch.zeros((), device=p.device), **{name: torch.zeros_like(p) for name in means}}


def hold_still(model: nn.Module, recipe: Recipe, step: int) -> None:
    """Drop the gradients of what does not learn at a step of the curriculum, parts and TransV stages that drop nothing:
    they count in no norm, and AdamW, its decay included, does not touch them."""
    trainable = trainable_at(step, recipe.train)
    kept = keep_at(step, recipe.model.transv, recipe.train.phases)
    idle = tuple(f"decoder.transv.{name}." for name, keep in kept.items() if keep == 1)
    for name, p in model.named_parameters():
        if part_of(name) not in trainable or (idle and plain_name(name).startswith(idle)):
            p.grad = None


def set_lr(optimizer: AdamW, step: int, steps: int, cfg: OptimConfig) -> float:
    """Set every group's rate for this step; returns the scale."""
    scale = lr_scale(step, steps, cfg)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    return scale
