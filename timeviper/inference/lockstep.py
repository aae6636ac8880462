"""Answers from a model that is sharded over ranks: every token is a forward pass that all ranks make together.

`generate.py` writes faster, but reaches into the model; here every use of the weights goes through its `forward`,
where sharding gathers them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor

from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack


@torch.no_grad()
def answer_in_step(
    model: TimeViper,
    prompts: Pack,
    max_new_tokens: int,
    *,
    stop_ids: Collection[int],
    dtype: torch.dtype | None = None,
    world: int = 1,
) -> list[Tensor]:
    """Greedy answers to the prompts of a pack, int64 `[n]` each on the CPU, as `generate_pack` writes them.

    Every one of the `world` ranks must call this with as many `max_new_tokens`, each with prompts of its own; all stop
    when the last of them has, or when the context of one is full. dtype: in which the model computes (None: that of its
    parameters).
    """
    S, device = len(prompts.lengths), prompts.ids.device
    state = model.decoder.empty_state(S, device, dtype)
    written: list[list[int]] = [[] for _ in range(S)]
    going = [True] * S
    room = model.decoder.cfg.max_tokens - max(prompts.lengths) + 1  # the last token written is not read again
    pack = prompts
    for _ in range(-_largest(-min(room, max_new_tokens), device, world)):
        logits = model(pack, state, last_logits=True).logits
        chosen = logits.argmax(-1)
        for i, token in enumerate(chosen.tolist()):
            going[i] = going[i] and token not in stop_ids
            if going[i]:
                written[i].append(token)
        if not _largest(any(going), device, world):
            break
        pack = _next(chosen, prompts)  # of those that have stopped, too: nobody reads what they go on writing
    return [torch.tensor(ids, dtype=torch.int64) for ids in written]


def _next(chosen: Tensor, prompts: Pack) -> Pack:
    """One more token of each sequence, `[S]`, as a pack."""
    S = len(chosen)
    return Pack(
        ids=chosen,
        labels=torch.full_like(chosen, IGNORE),
        kind=torch.full_like(chosen, Kind.ANSWER, dtype=torch.uint8),
        lengths=[1] * S,
        frames=prompts.frames[:0],
        frame_times=prompts.frame_times[:0],
        frame_counts=[0] * S,
    )


def _largest(value: int, device: torch.device, world: int) -> int:
    """Over all ranks."""
    if world == 1:
        return value
    shared = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)
