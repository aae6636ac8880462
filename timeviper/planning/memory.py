"""Peak memory of a GPU under FSDP2, as `parallel.py` shards: the fullest of the moments of a step.

At all times: float32 master weights and AdamW's two moments, sharded (Muon holds one for its matrices, which is not
counted); the float32 gradients, sharded, or, where a rank has several packs a step, whole on every GPU until the last
pack reduces them (synchronisation is off before it) unless `parallel.reduce_every_pack` has each of them do so.
With `parallel.offload_params` the first line is on the host.
During a pass: the frames, the gathered root (embeddings, head, projectors), the gathered unit at work and the one
that is fetched ahead, what autograd keeps, and what the module at work needs for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from timeviper.config import Recipe, TowerConfig
from timeviper.config.shape import PackShape
from timeviper.model.flops import Execution
from timeviper.model.gradients import Gradients
from timeviper.offload import IN_FLIGHT
from timeviper.planning.activations import OFFLOADED, saved_activations
from timeviper.planning.mixer_activations import WIDE
from timeviper.planning.parameters import ShardedUnit
from timeviper.planning.vision_activations import encoding_bytes

LOSS_CHUNK = 1024  # tokens whose logits exist at a time: the default of `linear_cross_entropy`


@dataclass(frozen=True)
class Moment:
    """What fills the memory at one time of a step, bytes by name."""

    name: str
    items: dict[str, float]

    @property
    def bytes(self) -> float:
        return sum(self.items.values())


@dataclass(frozen=True)
class PeakMemory:
    """Of one GPU."""

    peak: Moment
    moments: tuple[Moment, ...]
    """The moments of the step that were compared; of the blocks' backward passes, the fullest."""
    activations: dict[str, float]
    """Bytes that autograd keeps of a pack, by part, when the forward pass ends."""


def peak_memory(
    recipe: Recipe,
    units: list[ShardedUnit],
    shape: PackShape,
    gpus: int,
    packs: int,
    device: Literal["cpu", "cuda"] = "cuda",
) -> PeakMemory:
    """The fullest moment of a step in which a rank has `packs` packs of this shape.

    units: `sharded_parameters` of the stage's model.
    """
    step = _Step(recipe, units, shape, gpus, packs, device)
    moments = tuple(step.moments())
    activations: dict[str, float] = {}
    for saved in step.saved:
        activations[saved.part] = activations.get(saved.part, 0.0) + saved.kept
    return PeakMemory(max(moments, key=lambda m: m.bytes), moments, activations)


class _Step:
    def __init__(
        self,
        recipe: Recipe,
        units: list[ShardedUnit],
        shape: PackShape,
        gpus: int,
        packs: int,
        device: Literal["cpu", "cuda"],
    ) -> None:
        self.recipe, self.model, self.units, self.shape, self.packs = recipe, recipe.model, units, shape, packs
        self.shards = gpus // recipe.parallel.replicas
        self.whole = packs > 1 and not recipe.parallel.reduce_every_pack  # gradients of earlier packs
        self.a = 2 if recipe.parallel.param_dtype == "bfloat16" else WIDE
        self.grads = Gradients.of(recipe.model, recipe.train.trainable)
        execution = Execution.of(recipe.parallel, device)
        self.saved = saved_activations(
            recipe.model, shape, recipe.train.trainable, execution, self.a, recipe.train.objective
        )
        self.root = units[-1]
        self.trained = sum(unit.trained_elements for unit in units)
        self.weights = self.gradients = 0.0
        if not recipe.parallel.offload_params:
            self.weights = float(sum(unit.shard_bytes(self.shards) for unit in units))
            self.gradients = float(WIDE * sum(unit.shard_elements(self.shards) for unit in units))
        blocks = [u for u in units[:-1] if not u.name.startswith("towers.")]
        self.largest_gathered = max((u.gathered_bytes for u in blocks), default=0)
        self.largest_trained = max((u.trained_elements for u in blocks), default=0)
        size = max((t.image_size for t in self.towers), default=0)
        self.frames = float(3 * (shape.num_frames - shape.stored) * size**2)
        self.frames += self.a * shape.stored * sum(t.tokens * t.width for t in self.towers)

    @property
    def towers(self) -> list[TowerConfig]:
        return list(self.model.towers.values())

    def moments(self) -> Iterator[Moment]:
        yield from (self.encoding(name) for name in self.model.towers)
        yield self.loss()
        yield max((self.backward(i) for i in range(len(self.saved))), key=lambda m: m.bytes)
        yield self.reduction()
        yield Moment("optimizer", self.always(reduced=True))

    def always(self, reduced: bool) -> dict[str, float]:
        """Weights, moments and gradients; before or after the first gradients of a step are reduced."""
        items = {"master weights": self.weights, "optimizer": 2 * self.gradients}
        if reduced:
            return items | {"gradients": self.gradients}
        if self.whole:
            return items | {"gradients of earlier packs, whole": float(WIDE * self.trained)}
        return items | ({"gradients": self.gradients} if self.packs > 1 else {})

    def running(self, reduced: bool = False) -> dict[str, float]:
        return self.always(reduced) | {"frames": self.frames, "gathered root": float(self.root.gathered_bytes)}

    def kept(self, count: int, in_flight: int = IN_FLIGHT) -> float:
        """What the first `count` modules keep on the GPU. Blocks, transfers, encoders may keep theirs on the host, but
        for the last ones, which are `in_flight` there or back."""
        if not self.recipe.parallel.offload_activations:
            return sum(saved.kept for saved in self.saved[:count])
        away = [saved for saved in self.saved[:count] if saved.name.startswith(OFFLOADED)]
        here = [saved for saved in self.saved[:count] if not saved.name.startswith(OFFLOADED)]
        return sum(saved.kept for saved in (*here, *away[-in_flight:]))

    def encoding(self, name: str) -> Moment:
        tower = self.model.towers[name]
        items = self.running()
        items["gathered unit"] = float(next(u.gathered_bytes for u in self.units if u.name == f"towers.{name}"))
        if not self.grads.tower:
            items["working memory"] = encoding_bytes(tower, self.shape.num_frames, self.a)
        items["activations"] = sum(s.kept for s in self.saved if s.part == "tower")
        return Moment(f"encoding with tower {name}", items)

    def loss(self) -> Moment:
        """The end of the forward pass: the logits of one chunk, and the head's gradient made from them."""
        D, V, M = self.model.decoder.width, self.model.decoder.vocab_size, min(self.shape.labels, LOSS_CHUNK)
        items = self.running()
        items["activations"] = self.kept(len(self.saved))
        forward = M * V * (WIDE + 2 * self.a)  # float32 logits and those of the computation's dtype, twice
        backward = 0
        if self.grads.decoder:
            forward += self.a * V * D  # the chunk's share of the head's gradient
            backward += V * D * (WIDE + self.a)  # that gradient, scaled by the loss's and cast
        items["working memory"] = float(max(forward, backward))
        return Moment("loss", items)

    def backward(self, i: int) -> Moment:
        """The backward pass of the i-th module: what was kept up to it, and what it makes for itself."""
        at = self.saved[i]
        items = self.running(reduced=not self.whole)
        items["activations"] = self.kept(i, in_flight=1) + at.kept  # what was offloaded comes one ahead
        items["recomputed activations"] = at.recomputed
        items["working memory"] = at.gradients
        ahead = 2 if self.shards > 1 else 1  # the unit at work, and the one that is fetched while it works
        items["gathered unit"] = float(ahead * self.largest_gathered)
        if at.recomputed and self.recipe.parallel.tokens_per_piece:
            items["gradients summed over pieces"] = float((self.a + WIDE) * self.largest_trained)
        items["gradients being reduced"] = float((self.a + WIDE) * self.largest_trained)
        if i < len(self.saved) - 1:  # autograd has made the head's by now; the root is reduced at the end
            head = self.a * self.model.decoder.vocab_size * self.model.decoder.width
            items["gradient of the head"] = float(head) if self.grads.decoder else 0.0
        return Moment(f"backward pass of {at.name}", items)

    def reduction(self) -> Moment:
        """The end of the backward pass: the root's gradients are reduced."""
        items = self.running(reduced=True)
        size = WIDE if self.whole else self.a
        items["gradients being reduced"] = float((size + WIDE) * self.root.trained_elements)
        return Moment("reduction of the root's gradients", items)
