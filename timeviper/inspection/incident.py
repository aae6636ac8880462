"""A step that went wrong, written down so that `timeviper replay` can repeat it.

A bundle is a folder: `incident.json` (what happened, sizes of every layer, the samples), `config.yaml`,
`rng.safetensors` (the generators of every rank as the step seeded them) and `weights/` (before the step, and after it,
since a step that went wrong is not applied). The data are not in it: the plan gives them from the recipe and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from timeviper.config import Recipe
from timeviper.config.load import dump
from timeviper.files import whole_folder
from timeviper.inspection.probe import PackReport, Probe, gates, gradient_norms, not_finite
from timeviper.pack import Pack
from timeviper.package import VERSION
from timeviper.parallel import ShardedModel
from timeviper.training.step import accumulate
from timeviper.weights.export import CONFIG
from timeviper.weights.tensors import write_tensors

FORMAT = 1
REPORT, RNG, WEIGHTS = "incident.json", "rng.safetensors", "weights"


@dataclass
class Diagnosis:
    """What a look at one step found: packs of the ranks that looked, figures of the whole model."""

    loss: float
    """Per label token of the whole step."""
    grad_norm: float
    packs: list[PackReport]
    layers: dict[str, float]
    """Norm of the gradient of each layer's parameters."""
    weights_not_finite: dict[str, int]
    """Parameters with values that are not finite, and how many."""
    gates: dict[str, float]
    """tanh(alpha) of each transfer stage."""

    def first(self) -> PackReport | None:
        """The pack with the first value that is not finite: forward passes before losses before backward passes."""
        phases = ["forward", "loss", "backward"]
        found = [p for p in self.packs if p.first]
        return min(found, key=lambda p: phases.index(p.first.phase) if p.first else 0, default=None)

    def worst(self) -> PackReport | None:
        """The pack with the largest loss per label."""
        return max((p for p in self.packs if p.labels), key=lambda p: p.loss / p.labels, default=None)

    def describe(self) -> str:
        """One or two sentences: which layer, which sample."""
        if pack := self.first():
            assert pack.first is not None
            keys = pack.first.keys or pack.keys
            named = "sample" if len(keys) == 1 else "samples"
            if len(keys) > 1 and keys == pack.keys:
                named = "all samples"
            where = "" if pack.first.phase == "loss" else f" of the {pack.first.phase} pass"
            text = f"First not finite{where}: {pack.first.layer}, rank {pack.rank}, pack {pack.index}, {named} "
            text += _some(keys)
        elif pack := self.worst():
            text = (
                f"Largest loss per label: {pack.loss / pack.labels:.4g}, rank {pack.rank}, pack {pack.index}, "
                f"samples {_some(pack.keys)}"
            )
        else:
            text = "No pack has labels"
        if self.weights_not_finite:
            bad = [f"{name} ({n} values)" for name, n in self.weights_not_finite.items()]
            text += f". Weights not finite: {_some(bad)}"
        return text


def examine(
    model: ShardedModel,
    packs: Sequence[Sequence[Pack]],
    num_labels: float,
    world: int,
    rank: int,
    device: torch.device,
    before: Callable[[int], None] = lambda rank: None,
    after: Callable[[ShardedModel], None] = lambda model: None,
) -> Diagnosis:
    """Repeat forward and backward of a step with a probe in the model; gradients are empty before and after.

    packs: those of `rank`, or of several ranks from `rank` on, one list each. world: ranks that do this together.
    before: called with each rank before its packs, to set its random generators. after: called with the gradients of
    all packs in the model, before their norms are taken.
    """
    model.zero_grad(set_to_none=True)
    labels = torch.tensor(num_labels, device=device)
    reports: list[PackReport] = []
    loss = torch.zeros((), device=device)
    for i, share in enumerate(packs):
        before(rank + i)
        with Probe(model, rank + i) as probe:
            loss += accumulate(model, share, labels, world, device)[0]
        reports += probe.reports
    if world > 1:
        torch.distributed.all_reduce(loss)
    after(model)
    layers = gradient_norms(model)
    norm = math.sqrt(sum(n * n for n in layers.values()))
    model.zero_grad(set_to_none=True)
    weights = not_finite(model.named_parameters())
    return Diagnosis(float(loss / labels), norm, reports, layers, weights, gates(model))


@dataclass
class Incident:
    """`incident.json`."""

    recipe: str
    step: int
    left_out: list[int]
    """Steps of the plan that the run had left out before (see `datamodules/left_out.py`)."""
    ranks: int
    reason: str
    policy: str
    num_labels: float
    findings: Diagnosis
    loss: float
    grad_norm: float
    """As the training step had them, before the second look that `findings` holds."""
    checkpoint: str
    """The newest checkpoint on disk at that time; empty without one."""
    format: int = FORMAT
    timeviper: str = VERSION
    torch: str = torch.__version__
    time: str = field(default_factory=lambda: datetime.now().isoformat(timespec="seconds"))

    @staticmethod
    def read(bundle: Path) -> Incident:
        """Raises ValueError that says what is wrong with the folder."""
        file = bundle / REPORT
        if not file.is_file():
            raise ValueError(f"{bundle} is no incident: it has no {REPORT}. They lie in RUN/incidents/.")
        try:
            data = _numbers(json.loads(file.read_text()))
            if data["format"] > FORMAT:
                raise ValueError(
                    f"{file} was written by timeviper {data['timeviper']} in format {data['format']}; this is "
                    f"{VERSION}, which reads formats up to {FORMAT}: replay it with that version"
                )
            found = data["findings"]
            packs = [PackReport.from_dict(p) for p in found["packs"]]
            return Incident(**data | {"findings": Diagnosis(**found | {"packs": packs})})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    def write(
        self, folder: Path, recipe: Recipe, rng: dict[str, Tensor], weights: Iterable[tuple[str, Tensor]] | None
    ) -> None:
        """The whole bundle, under a temporary name until it is complete. Raises OSError."""
        with whole_folder(folder) as partial:
            (partial / REPORT).write_text(json.dumps(_plain(asdict(self)), indent=1, allow_nan=False) + "\n")
            dump(recipe, partial / CONFIG)
            save_file(rng, partial / RNG)
            if weights is not None:
                write_tensors(partial / WEIGHTS, weights)


def rng_state(device: torch.device, rank: int) -> dict[str, Tensor]:
    """The generators of this process."""
    state = {f"rank{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state[f"rank{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device, rank: int) -> None:
    if f"rank{rank}.cpu" in state:
        torch.set_rng_state(state[f"rank{rank}.cpu"])
    if device.type == "cuda" and f"rank{rank}.cuda" in state:
        torch.cuda.set_rng_state(state[f"rank{rank}.cuda"], device)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    """The reverse of `_plain`."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
