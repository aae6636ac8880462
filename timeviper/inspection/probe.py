"""What happens inside the model while packs go through it: sizes of activations and gradients of every layer, and
where the first value that is not a number appears.

Made of hooks on the modules, so that a training step is looked at as it is; used only when a step has gone wrong,
since every figure waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.tensor import DTensor

from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Block
from timeviper.model.mamba2 import Scan
from timeviper.model.state import Keys, Span
from timeviper.model.transv import Transfer
from timeviper.pack import Pack
from timeviper.parallel import plain_name


@dataclass
class Size:
    """How large a tensor's values are."""

    rms: float
    largest: float
    not_finite: int
    count: int = 0
    """Finite values."""

    @staticmethod
    def of(tensor: Tensor) -> Size:
        values = tensor.detach().to(torch.float32)
        finite = values.isfinite()
        kept = torch.where(finite, values, 0)
        count = int(finite.sum())
        largest = float(kept.abs().max()) if values.numel() else 0.0
        return Size(math.sqrt(float(kept.square().sum()) / max(count, 1)), largest, int((~finite).sum()), count)

    def __add__(self, other: Size) -> Size:
        """Of two parts of a tensor."""
        count = self.count + other.count
        mean_square = (self.count * self.rms**2 + other.count * other.rms**2) / max(count, 1)
        not_finite = self.not_finite + other.not_finite
        return Size(math.sqrt(mean_square), max(self.largest, other.largest), not_finite, count)


@dataclass
class First:
    """Where the first value that is not a number appeared."""

    phase: str
    """forward, loss or backward."""
    layer: str
    """Name of the module whose output it was; in the backward pass, whose output's gradient."""
    keys: list[str]
    """The samples whose rows of that tensor are affected; empty when its rows are not those of samples."""


@dataclass
class PackReport:
    """One pack on its way through the model."""

    rank: int
    index: int
    keys: list[str]
    lengths: list[int]
    labels: int
    loss: float = math.nan
    """Sum over the label tokens."""
    activations: dict[str, Size] = field(default_factory=dict)
    """Of each module's output, by name; values that are not finite are counted and left out of the sizes."""
    gradients: dict[str, Size] = field(default_factory=dict)
    """Of the loss with respect to each module's output."""
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Smallest and largest step size dt, after softplus, of each state space scan."""
    first: First | None = None

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PackReport:
        """The reverse of `dataclasses.asdict`."""
        report = PackReport(**data)
        report.activations, report.gradients = (
            {name: Size(**s) for name, s in data[k].items()} for k in ("activations", "gradients")
        )
        report.first = First(**data["first"]) if data["first"] else None
        return report


class Probe:
    """Context in which every forward and backward of `model` leaves a `PackReport` in `reports`."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        self.model, self.rank = model, rank
        self.reports: list[PackReport] = []
        self._rows: dict[int, tuple[Bounds, int]] = {}  # the sequences of so many rows, and the number of the first
        self._forward = False
        self._hooks: list[Any] = []

    def __enter__(self) -> Probe:
        torch.compiler.set_stance("force_eager")  # compiled modules do not notice new hooks
        self._hooks += [
            self.model.register_forward_pre_hook(self._pack_begins),
            self.model.register_forward_hook(self._pack_ends),
        ]
        for name, module in self.model.named_modules():
            if module is self.model or isinstance(module, ActivationWrapper):
                continue
            name = plain_name(f"{name}.").removesuffix(".")
            if isinstance(module, Block):
                self._hooks.append(module.register_forward_pre_hook(self._block_begins(name)))
            if isinstance(module, Scan):
                self._hooks.append(module.register_forward_pre_hook(self._scan_begins(name)))
            self._hooks.append(module.register_forward_hook(self._module_ends(name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        torch.compiler.set_stance("default")

    # ---- hooks ------------------------------------------------------------------------------------------

    def _pack_begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        pack: Pack = args[0]
        self.reports.append(PackReport(self.rank, len(self.reports), pack.keys, pack.lengths, pack.num_labels))
        bounds = (Bounds(pack.frame_counts, pack.ids.device), Bounds(pack.lengths, pack.ids.device))
        self._rows = {b.num_tokens: (b, 0) for b in bounds if b.num_tokens}
        self._forward = True

    def _block_begins(self, name: str):
        """After a transfer the stream is shorter, and a piece of it shorter still: rows belong to samples by other
        boundaries."""

        def hook(module: Block, args: tuple[Any, ...]) -> None:
            span: Span = args[1]
            piece = span.piece
            self._rows[span.bounds.num_tokens] = span.bounds, piece.sequences.start if piece else 0
            answers = len(args) > 2 and isinstance(args[2], Keys) and args[2].k is not None  # its keys came before
            begins = (piece is None or piece.rows.start == 0) and not answers
            if self._forward and begins:  # what ranked tokens before does not count
                activations = self.reports[-1].activations
                for known in [n for n in activations if n == name or n.startswith(f"{name}.")]:
                    del activations[known]

        return hook

    def _scan_begins(self, name: str):
        def hook(module: Scan, args: tuple[Any, ...]) -> None:
            if self._forward:
                dt = F.softplus(args[1].detach().float() + module.dt_bias.detach().float())
                if dt.numel():
                    low, high = self.reports[-1].steps.get(name, (math.inf, -math.inf))
                    self.reports[-1].steps[name] = [min(low, float(dt.min())), max(high, float(dt.max()))]

        return hook

    def _module_ends(self, name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            if not isinstance(out, Tensor) or not out.is_floating_point():
                return
            report = self.reports[-1]
            if self._forward:  # a checkpointed block, which runs again in the backward pass, has its gradients there
                size = Size.of(out)
                report.activations[name] = report.activations.get(name, Size(0.0, 0.0, 0)) + size
                if size.not_finite and report.first is None:
                    report.first = First("forward", name, self._keys(out))
            if out.requires_grad:
                out.register_hook(self._gradient(name, report))

        return hook

    def _pack_ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._forward = False
        report = self.reports[-1]
        report.loss = float(output.loss_sum.detach())
        if not math.isfinite(report.loss) and report.first is None:
            report.first = First("loss", "logits and cross-entropy", [])

    def _gradient(self, name: str, report: PackReport):
        def hook(gradient: Tensor) -> None:
            size = Size.of(gradient)
            report.gradients[name] = report.gradients.get(name, Size(0.0, 0.0, 0)) + size
            if size.not_finite and report.first is None:
                report.first = First("backward", name, self._keys(gradient))

        return hook

    def _keys(self, tensor: Tensor) -> list[str]:
        """The samples of the rows that hold a value which is not finite."""
        if not tensor.ndim or tensor.shape[0] not in self._rows:
            return []
        bounds, first = self._rows[tensor.shape[0]]
        bad = (~tensor.detach().isfinite()).flatten(1).any(dim=1) if tensor.ndim > 1 else ~tensor.detach().isfinite()
        keys = self.reports[-1].keys[first:]
        return [keys[i] for i in bounds.seq_idx[bad].unique().tolist() if i < len(keys)]


# ---- parameters -------------------------------------------------------------------------------------------


def layer_of(parameter: str) -> str:
    """The layer that a parameter is counted to: a block, a transfer stage, or the module that owns it."""
    parts = parameter.split(".")
    depth = 3 if parts[:2] in (["decoder", "blocks"], ["decoder", "transv"]) else 2
    return ".".join(parts[: min(depth, len(parts) - 1)])


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each layer's parameters, over all shards; every rank must call this."""
    layers: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            layers.setdefault(layer_of(plain_name(name)), []).append(p.grad)
    return {layer: float(_whole(torch.nn.utils.get_total_norm(grads))) for layer, grads in layers.items()}


def not_finite(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Parameters that hold values which are not finite, and how many; every rank must call this."""
    found = {}
    for name, tensor in named:
        count = (~tensor.detach().isfinite()).sum()
        if number := int(_whole(count)):
            found[plain_name(name)] = number
    return found


def gates(model: nn.Module) -> dict[str, float]:
    """tanh(alpha) of each transfer stage, which is what it adds with; every rank must call this."""
    return {
        plain_name(f"{name}.").removesuffix("."): float(torch.tanh(_whole(module.alpha.detach()).float()))
        for name, module in model.named_modules()
        if isinstance(module, Transfer)
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
