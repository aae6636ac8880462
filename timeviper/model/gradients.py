"""Where a backward pass goes: which parts learn, whole or by adapters, and what carries a gradient from there on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from timeviper.config import PARTS, ModelConfig
from timeviper.model.layers import MLPS
from timeviper.model.lora import is_target


@dataclass(frozen=True)
class Gradients:
    """What `train.trainable` and `model.lora` mean for the passes of one model. A part with adapters is frozen."""

    tower: bool
    projector: bool
    decoder: bool
    transv: bool
    rank: int
    dropout: bool
    targets: tuple[str, ...]

    @classmethod
    def of(cls, model: ModelConfig, trainable: Collection[str]) -> Gradients:
        sees = bool(model.towers)
        targets = tuple(model.lora.targets) if model.lora.rank else ()
        kinds = [target.partition(".")[0] for target in targets]
        adapted = {kind if kind in PARTS else "decoder" for kind in kinds}  # attention, mamba, mlp are of the decoder
        whole = {part: part in trainable and part not in adapted for part in PARTS}
        return cls(
            tower=sees and whole["tower"],
            projector=sees and whole["projector"],
            decoder=whole["decoder"],
            transv=whole["transv"],
            rank=model.lora.rank,
            dropout=model.lora.dropout > 0,
            targets=targets,
        )

    def adapter(self, target: str) -> int:
        """The rank of the adapter beside a map, such as `attention.q`; 0: it has none."""
        return self.rank if is_target(target, list(self.targets)) else 0

    @property
    def vision(self) -> bool:
        """Whether the frames' tokens carry a gradient into the decoder."""
        return self.tower or self.projector or bool(self.adapter("projector.in") or self.adapter("projector.out"))

    @property
    def embedded(self) -> bool:
        """Whether the decoder's input carries one (the embeddings belong to the part `decoder`)."""
        return self.vision or self.decoder


@dataclass(frozen=True)
class Maps:
    """The linear maps of one block or transfer, as its adapters see them."""

    first: tuple[tuple[int, int], ...]
    """(outputs, rank of the adapter) of the maps that all read the block's normed input."""
    last: tuple[int, int]
    """(inputs, rank of the adapter) of the map back to the residual stream."""

    @property
    def rank_in(self) -> int:
        return max(rank for _, rank in self.first)

    @property
    def adapted(self) -> bool:
        return bool(self.rank_in or self.last[1])


def maps_of(letter: str, model: ModelConfig, grads: Gradients) -> Maps:
    """The maps of a block by its letter, or of a transfer (`T`; q reads the text, k and v the sources)."""
    cfg, rank = model.decoder, grads.adapter
    if letter == "M":
        inner = cfg.ssm_heads * cfg.ssm_head_dim
        wide = 2 * inner + 2 * cfg.ssm_groups * cfg.ssm_state + cfg.ssm_heads  # gate and x; B and C; step
        return Maps(((wide, rank("mamba.in")),), (inner, rank("mamba.out")))
    if letter == "-":
        up = (cfg.mlp_width, rank("mlp.up"))
        gate = ((cfg.mlp_width, rank("mlp.gate")),) if MLPS[cfg.facts.mlp].gated else ()
        return Maps((up, *gate), (cfg.mlp_width, rank("mlp.down")))
    kind = "attention" if letter == "*" else "transv"
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    first = ((q, rank(f"{kind}.q")), (kv, rank(f"{kind}.k")), (kv, rank(f"{kind}.v")))
    return Maps(first, (q, rank(f"{kind}.o")))
