"""Several gloo ranks on one machine, and a few training steps on them without loader and Trainer."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from model_helpers import HYBRID, PUBLISHED
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from viper_helpers import TOWER, sample

from timeviper.config import (
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Recipe,
    TrainConfig,
    TransVConfig,
)
from timeviper.pack import Pack
from timeviper.parallel import ShardedModel, WholeTensors, home, parallelize, plain_name
from timeviper.tokenizer import Tokenizer
from timeviper.training.optim import build_optimizer, set_lr
from timeviper.training.step import accumulate
from timeviper.weights.export import build_model, follow_export, write_export

SPAWN = multiprocessing.get_context("forkserver")
# Imported once for all ranks of all tests. (Modules of this folder cannot be named: its path is not known there.)
SPAWN.set_forkserver_preload(
    ["torch", "pytest", "timeviper.weights.export", "timeviper.training.step", "torch.distributed.fsdp"]
)


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on every rank of a gloo process group; what they return, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = SPAWN.Queue()
    processes = [SPAWN.Process(target=_rank, args=(r, world, port, queue, function, args)) for r in range(world)]
    for process in processes:
        process.start()
    try:
        found: dict[int, Any] = {}
        while len(found) < world:
            try:
                rank, result = queue.get(timeout=1)
                found[rank] = result
            except Empty:
                dead = [p.exitcode for p in processes if p.exitcode]
                assert not dead, f"ranks ended with {dead}"
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for rank, result in found.items():
        if isinstance(result, str):
            raise AssertionError(f"rank {rank} of {world}:\n{result}")
    return [pickle.loads(found[rank]) for rank in range(world)]


def _rank(rank: int, world: int, port: int, queue: Queue, function: Callable[..., Any], args: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        # Pickled here: a tensor in a queue is a handle into this process, which ends.
        queue.put((rank, pickle.dumps(function(*args))))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        queue.put((rank, traceback.format_exc()))


def small_recipe(
    lora: LoraConfig | None = None, trainable: tuple[str, ...] = ("projector", "decoder", "transv"), **parallel: Any
) -> Recipe:
    """All kinds of blocks and both kinds of transfers, in float32."""
    model = ModelConfig(
        towers={"main": TOWER}, decoder=HYBRID, transv=TransVConfig(stages=dict(PUBLISHED)), lora=lora or LoraConfig()
    )
    return Recipe(
        name="small",
        size="test",
        seed=3,
        model=model,
        train=TrainConfig(steps=6, trainable=list(trainable)),
        optim=OptimConfig(lr=1e-2, warmup=0.0, schedule="constant"),
        parallel=replace(ParallelConfig(param_dtype="float32"), **parallel),
    )


def step_packs(step: int) -> list[Pack]:
    """Four packs: videos, an image, text only; other samples at every step."""
    shapes = (("2c12v3i4a", 3), ("3c2a", 0), ("1c4v2i1a", 1), ("2c8v2i4v3i5a", 3), ("5c3a", 0), ("1c16v4i2a", 4))
    parts = [sample(pattern, frames, seed=100 * step + i) for i, (pattern, frames) in enumerate(shapes)]
    return [Pack.join(parts[:2]), Pack.join(parts[2:3]), Pack.join(parts[3:5]), Pack.join(parts[5:])]


@dataclass
class Trained:
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step, whole."""
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


def open_gates(model: nn.Module) -> None:
    """Transfers that give something: a gate of 0 would hide what is wrong behind it."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("alpha"):
                p.fill_(0.7)


def sharded(recipe: Recipe) -> ShardedModel:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    device = home(torch.device("cpu"), recipe.parallel)
    return cast(ShardedModel, build_model(recipe, lambda model: parallelize(model, mesh, recipe.parallel), device))


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in WholeTensors(model).items()}


def first_weights(recipe: Recipe) -> dict[str, Tensor]:
    """Before the first step, whole."""
    return whole(sharded(recipe))


def train_all(recipes: list[Recipe], steps: int = 2) -> list[Trained]:
    """One run after the other, in the same processes."""
    return [train(recipe, steps) for recipe in recipes]


def train(recipe: Recipe, steps: int = 2) -> Trained:
    """Steps on this rank; whole tensors for comparison."""
    model = sharded(recipe)
    open_gates(model)
    before = whole(model)
    trained = take_steps(model, build_optimizer(model, recipe.optim), recipe, range(steps))
    return replace(trained, before=before, after=whole(model))


def take_steps(model: ShardedModel, optimizer: AdamW, recipe: Recipe, steps: range) -> Trained:
    rank, world = dist.get_rank(), dist.get_world_size()
    trained = Trained()
    for step in steps:
        set_lr(optimizer, step, recipe.train.steps, recipe.optim)
        packs = step_packs(step)
        labels = torch.tensor(float(sum(p.num_labels for p in packs)))
        total, _ = accumulate(model, packs[rank::world], labels, world, torch.device("cpu"))
        dist.all_reduce(total)
        gradients = {n: cast(DTensor, p.grad) for n, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], math.inf)
        trained.norms.append(float(cast(DTensor, norm).full_tensor()))
        if not trained.gradients:
            trained.gradients = {plain_name(n): g.full_tensor().clone() for n, g in gradients.items()}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        trained.losses.append(float(total / labels))
    return trained


def gradients_in_float64(sizes: list[int], trainable: Sequence[str]) -> list[tuple[float, dict[str, Tensor]]]:
    """Of the four packs of a step, dealt to the ranks, in pieces of these sizes (-1: whole); ranks have other numbers
    of pieces."""
    rank, world, found = dist.get_rank(), dist.get_world_size(), []
    for size in sizes:
        types = "none" if size < 0 else "all"
        model = sharded(
            small_recipe(activation_checkpointing=types, tokens_per_piece=max(size, 0), trainable=tuple(trainable))
        )
        model.double()
        open_gates(model)
        packs = step_packs(0)
        total, _ = accumulate(model, packs[rank::world], torch.tensor(1.0), world, torch.device("cpu"))
        dist.all_reduce(total)
        named = ((plain_name(n), p.grad) for n, p in model.named_parameters() if p.grad is not None)
        found.append((float(total), {n: cast(DTensor, g).full_tensor().clone() for n, g in named}))
    return found


def logits_of(model: nn.Module) -> list[Tensor]:
    """After each sequence of four packs that no step has seen."""
    with torch.no_grad():
        return [model(pack, last_logits=True).logits for pack in step_packs(5)]


def train_and_export(recipe: Recipe, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """All tensors before and after two steps with a break between them, and the trained model's logits.

    After the first step weights and optimizer go to disk, and the second is made by a model that starts from there.
    """
    first = sharded(recipe)
    before = whole(first)
    optimizer = build_optimizer(first, recipe.optim)
    take_steps(first, optimizer, recipe, range(1))
    keep = get_state_dict(first, optimizer)
    dcp.save(dict[str, Any](zip(("model", "optimizer"), keep)), checkpoint_id=folder.parent / "checkpoint")
    take_steps(first, optimizer, recipe, range(1, 2))

    model = sharded(recipe)
    optimizer = build_optimizer(model, recipe.optim)
    state = dict[str, Any](zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    dcp.load(state, checkpoint_id=folder.parent / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    take_steps(model, optimizer, recipe, range(1, 2))
    after = whole(model)
    for name, tensor in whole(first).items():
        assert torch.equal(tensor, after[name]), f"{name} is another one without the break"
    if dist.get_rank() == 0:
        write_export(folder, WholeTensors(model), recipe, Tokenizer.load(""), step=2)
    else:
        follow_export(WholeTensors(model), recipe.model.lora)
    model.eval()
    return before, after, logits_of(model)
