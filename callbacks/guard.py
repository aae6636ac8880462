"""Catches a step whose loss or gradient is not a number or explodes, before it is applied."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from timeviper.config import Recipe
from timeviper.files import TEMPORARY
from timeviper.inspection.incident import Diagnosis, Incident, examine, rng_state
from timeviper.pack import StepBatch
from timeviper.parallel import WholeTensors
from timeviper.training.ends import NoData, told_by_all
from timeviper.training.module import ViperModule
from timeviper.training.optim import hold_still
from timeviper.training.step import seed_step
from timeviper.training.strategy import Sharded


class Rewind(Exception):
    """Raised on all ranks alike: continue from `checkpoint` (None: the beginning), without the data of `step`."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"step {step}: back to {checkpoint.name if checkpoint else 'the beginning'}")
        self.step, self.checkpoint = step, checkpoint


class Guard(pl.Callback):
    """Judges every step between its backward pass and the optimizer; see `config.settings.GuardConfig`.

    Loss and gradient norm are those of all ranks, and the verdict is shared, so that no rank decides alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        left_out: frozenset[int],
        resume_hint: str,
        pause: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """left_out: steps of the plan without which this run goes. pause: entered while a bundle is written."""
        self.recipe, self.config = recipe, recipe.train.guard
        self.folder = run / "incidents"
        self.left_out, self.resume_hint, self.pause = left_out, resume_hint, pause
        self.losses: deque[float] = deque(maxlen=self.config.window)
        self.norms: deque[float] = deque(maxlen=self.config.window)
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses.extend(state_dict["losses"])
        self.norms.extend(state_dict["norms"])
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = [p for p in self.folder.glob("step=*") if p.suffix != TEMPORARY]
        self._count = trainer.strategy.broadcast(len(before))

    def admits(self, module: ViperModule, batch: StepBatch, loss: Tensor, norm: Tensor, num_labels: Tensor) -> bool:
        """Whether the optimizer may use the gradients of this step; every rank gets the same answer.

        loss: per label token; norm: of the gradient; both of the whole step.
        Raises FloatingPointError or Rewind, on all ranks alike, where that is the policy; NoData where a rank has none.
        """
        if math.isnan(float(num_labels)):
            raise NoData(told_by_all(batch.away, module.trainer))
        loss_, norm_ = float(loss), float(norm)
        reason = self._reason(loss_, norm_)
        if not self._agreed(reason is not None, module.trainer):
            self.losses.append(loss_)
            self.norms.append(norm_)
            return True
        with self.pause():
            told = self._record(module, batch, loss_, norm_, float(num_labels), reason or "bad on another rank")
        self._act(module.trainer, batch.step, told)
        return False

    def _reason(self, loss: float, norm: float) -> str | None:
        figures = {"loss": (loss, self.losses), "gradient norm": (norm, self.norms)}
        if bad := [f"{name} {value}" for name, (value, _) in figures.items() if not math.isfinite(value)]:
            return ", ".join(bad)
        if not self.config.spike or len(self.losses) < self.config.window / 4:
            return None
        for name, (value, history) in figures.items():
            median = statistics.median(history)
            if value > self.config.spike * median:
                return f"{name} {value:.4g}, {value / median:.1f} times its running median {median:.4g}"
        return None

    def _agreed(self, bad: bool, trainer: pl.Trainer) -> bool:
        """Whether any rank found the step bad."""
        if trainer.world_size == 1:
            return bad
        flag = torch.tensor(float(bad), device=trainer.strategy.root_device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    # ---- the bundle -------------------------------------------------------------------------------------

    def _record(
        self, module: ViperModule, batch: StepBatch, loss: float, norm: float, num_labels: float, reason: str
    ) -> str:
        """Look at the step again and write its bundle; returns what to tell, the same text on all ranks."""
        strategy = cast(Sharded, module.trainer.strategy)
        findings, rng = self._look_again(module, batch, num_labels)
        kept = strategy.store.latest()
        incident = Incident(
            recipe=self.recipe.name,
            step=batch.step,
            left_out=sorted(self.left_out),
            ranks=strategy.world_size,
            reason=reason,
            policy=self.config.policy,
            num_labels=num_labels,
            findings=findings,
            loss=loss,
            grad_norm=norm,
            checkpoint=str(kept) if kept else "",
        )
        # Gathered one by one; all ranks take part, and rank 0 goes on to the end even if it cannot write.
        weights = iter(WholeTensors(module.model).items()) if self._count < self.config.keep_weights else None
        self._count += 1
        told = f"step {batch.step}: {reason}. {findings.describe()}. "
        if strategy.is_global_zero:
            told += self._write(incident, rng, weights)
        for _ in weights or ():
            pass
        return strategy.broadcast(told)

    def _look_again(
        self, module: ViperModule, batch: StepBatch, num_labels: float
    ) -> tuple[Diagnosis, dict[str, Tensor]]:
        """The step once more with hooks in the model, drawn as before: what all ranks see, and their generators."""
        rank, world, device = module.global_rank, module.trainer.world_size, module.trainer.strategy.root_device
        seed_step(self.recipe.seed, batch.step, rank, world)
        rng = rng_state(device, rank)
        after = partial(hold_still, recipe=self.recipe, step=module.plan_step(batch.step))
        findings = examine(module.model, [batch.packs], num_labels, world, rank, device, after=after)
        if world > 1:
            every: list[Any] = [None] * world
            dist.all_gather_object(every, (findings.packs, rng))
            findings.packs = [pack for packs, _ in every for pack in packs]
            rng = {name: state for _, states in every for name, state in states.items()}
        return findings, rng

    def _write(self, incident: Incident, rng: dict[str, Tensor], weights: Iterator[tuple[str, Tensor]] | None) -> str:
        name, number = f"step={incident.step}", 2
        while (self.folder / name).exists():  # went back, and came here with other data
            name, number = f"step={incident.step}-{number}", number + 1
        try:
            incident.write(self.folder / name, self.recipe, rng, weights)
        except OSError as error:
            return f"No bundle could be written ({error})"
        if weights is None:
            return f"Figures without weights: {self.folder / name}"
        return f"To repeat it: timeviper replay {self.folder / name}"

    # ---- policies ---------------------------------------------------------------------------------------

    def _act(self, trainer: pl.Trainer, step: int, told: str) -> None:
        config = self.config
        if config.policy == "stop" or self._count > config.limit:
            over = ""
            if config.policy != "stop":
                over = f" Incident {self._count}, more than train.guard.limit={config.limit}."
            raise FloatingPointError(
                f"{told}.{over} The step was not applied. Lower optim.lr, mend the sample, or set "
                f"train.guard.policy=skip or rewind; then continue with: {self.resume_hint}"
            )
        if config.policy == "rewind":
            strategy = cast(Sharded, trainer.strategy)
            strategy.finish_write()
            checkpoint = strategy.broadcast(strategy.store.latest())
            back = Rewind(step, checkpoint)
            if trainer.is_global_zero:
                print(f"{told}. Going on without its data: {back}", flush=True)
            raise back
        self.skipped += 1
        if trainer.is_global_zero:
            print(f"{told}. The step is skipped, incident {self._count} of {config.limit}", flush=True)
