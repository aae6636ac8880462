"""The LightningModule: one training step for every stage.

One loader item is one optimizer step: this rank's packs. The loss is a sum over label tokens divided by
their number in the whole global step, so neither the cut into packs nor the number of ranks changes it.
"""

from __future__ import annotations

from math import nan
from typing import Protocol, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torchmetrics import MeanMetric, MetricCollection

from timeviper.config import Recipe
from timeviper.config.curriculum import transv_at
from timeviper.datamodules.coming import Coming
from timeviper.datamodules.left_out import plan_step
from timeviper.kernels import dispatch
from timeviper.model.parts import Parts
from timeviper.model.transv_stages import set_transv
from timeviper.pack import StepBatch
from timeviper.parallel import ShardedModel, home, parallelize
from timeviper.training.optim import build_optimizer, hold_still, set_lr
from timeviper.training.step import accumulate, seed_step
from timeviper.weights.export import build_model


class Judge(Protocol):
    """Decides, between the backward pass and the optimizer, whether a step's gradients may be used."""

    left_out: frozenset[int]
    """Steps of the plan without which this run goes (see `datamodules/left_out.py`)."""

    def admits(self, module: ViperModule, batch: StepBatch, loss: Tensor, norm: Tensor, num_labels: Tensor) -> bool:
        """loss: per label token; norm: of the gradient; both of the whole step. Every rank gets the same answer."""
        ...


class ViperModule(pl.LightningModule):
    """Trains TimeViper, or its tower alone, on `StepBatch`es."""

    def __init__(self, recipe: Recipe, val_types: list[str], judge: Judge) -> None:
        """`val_types`: the question types of the held-out data, one accuracy each."""
        super().__init__()
        self.automatic_optimization = False
        self.recipe = recipe
        self.judge = judge
        self.validation_cut = False
        self.val_loss = MeanMetric()
        self.val_accuracy = MetricCollection({t: MeanMetric() for t in ["overall", *val_types]}, compute_groups=False)

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        dispatch.configure(**vars(self.recipe.model.kernel))
        assert self.device_mesh is not None
        mesh, cfg = self.device_mesh["data_parallel"], self.recipe.parallel
        device = home(self.trainer.strategy.root_device, cfg)
        self.model = cast(ShardedModel, build_model(self.recipe, lambda m: self._sharded(m, mesh), device))

    def _sharded(self, model: Parts, mesh: DeviceMesh) -> ShardedModel:
        if self.trainer.is_global_zero:
            print(model.describe_trainable(), flush=True)
        return parallelize(model, mesh, self.recipe.parallel)

    def configure_optimizers(self) -> AdamW:
        return build_optimizer(self.model, self.recipe.optim)

    def transfer_batch_to_device(
        self, batch: StepBatch | Coming, device: torch.device, dataloader_idx: int
    ) -> StepBatch:
        # Packs move one at a time, when their turn comes.
        return batch.read() if isinstance(batch, Coming) else batch

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        optimizer = cast(LightningOptimizer, self.optimizers())
        step = self.global_step
        assert batch.step == step, f"the loader delivered step {batch.step} at step {step}"
        set_lr(cast(AdamW, optimizer.optimizer), step, self.recipe.train.steps, self.recipe.optim)
        place = self.plan_step(step)
        set_transv(self.model, transv_at(place, self.recipe.model.transv, self.recipe.train.phases))
        world = self.trainer.world_size
        # Labels, summed loss and right labels of the global step; the first is needed before the backward. Where a
        # store is away it is no number, which all ranks learn without a further message (`Guard.admits`).
        own = nan if batch.away else float(sum(p.num_labels for p in batch.packs))
        num_labels = torch.full((), own, device=self.device)
        if world > 1:
            dist.all_reduce(num_labels)
        num_labels = num_labels.clamp(min=1)
        seed_step(self.recipe.seed, step, self.global_rank, world)
        sums = accumulate(self.model, batch.packs, num_labels, world, self.device, self.manual_backward)
        hold_still(self.model, self.recipe, place)
        norm = self._clip(optimizer)
        self._report(*sums, num_labels, norm, optimizer)
        if not self.judge.admits(self, batch, self.figures["loss"], norm, num_labels):
            optimizer.zero_grad(set_to_none=True)  # the step counts, but without gradients it changes nothing
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def plan_step(self, step: int) -> int:
        """The step of the plan, and so of the curriculum, that a step of this run reads."""
        return plan_step(step, self.judge.left_out)

    def cut_validation(self) -> None:
        """End the validation at hand without figures: a stop was asked for in the middle, or a store is away."""
        self.validation_cut = True

    def on_validation_start(self) -> None:
        self.validation_cut = False
        set_transv(self.model, self.recipe.model.transv)  # as the export has it, wherever a curriculum stands

    def _clip(self, optimizer: LightningOptimizer) -> Tensor:
        """Gradient norm over all parameters and shards, before it is cut."""
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.recipe.optim.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _report(
        self, loss_sum: Tensor, correct: Tensor, num_labels: Tensor, norm: Tensor, optimizer: LightningOptimizer
    ) -> None:
        """Leave this step's figures where the callbacks find them; log them every `log.every` steps."""
        sums = torch.stack([loss_sum, correct])
        if self.trainer.world_size > 1:
            dist.all_reduce(sums)
        loss, accuracy = (sums / num_labels).unbind()
        self.figures = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "labels": num_labels}
        rates = {f"lr/{g['part']}": g["lr"] for g in optimizer.param_groups}
        self.log_dict({f"train/{k}": v for k, v in self.figures.items()} | rates, rank_zero_only=True)

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Teacher forcing. An answer counts when every one of its tokens is the most likely one, which is
        when greedy decoding would write exactly this answer."""
        for pack in batch.packs:
            out = self.model(pack.to(self.device))
            if out.num_labels == 0:
                continue
            self.val_loss.update(out.loss_sum / out.num_labels, out.num_labels)
            ends = torch.tensor(pack.lengths).cumsum(0)
            sequence = torch.searchsorted(ends, out.label_index.cpu(), right=True)
            wrong = torch.zeros(len(pack.lengths)).index_add_(0, sequence, (~out.correct.cpu()).float())
            for kind, right in zip(pack.types, (wrong == 0).float()):
                for name in {"overall", kind} & set(self.val_accuracy):
                    cast(MeanMetric, self.val_accuracy[name]).update(right)

    def on_validation_epoch_end(self) -> None:
        if self.validation_cut:
            self.val_loss.reset()
            self.val_accuracy.reset()
            return
        self.log("val/loss", self.val_loss, sync_dist=True)
        for kind, metric in self.val_accuracy.items():
            self.log(f"val/accuracy/{kind}", cast(MeanMetric, metric), sync_dist=True)
