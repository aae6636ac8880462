"""Repeats a step that went wrong, from the bundle that the guard wrote: all packs of all ranks in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from rich.table import Table
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from timeviper.config import Recipe
from timeviper.config.curriculum import transv_at
from timeviper.config.load import load_recipe
from timeviper.console import console
from timeviper.datamodules.build import build_plan, class_datasets, pack_format
from timeviper.datamodules.left_out import plan_step, steps_without
from timeviper.datamodules.on_change import adopt
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.patience import StoreUnusable
from timeviper.inspection.incident import CONFIG, RNG, WEIGHTS, Diagnosis, Incident, examine, set_rng_state
from timeviper.inspection.probe import PackReport, Size
from timeviper.kernels import dispatch
from timeviper.model.transv_stages import set_transv
from timeviper.pack import Pack
from timeviper.parallel import ShardedModel, home, parallelize
from timeviper.tokenizer import Tokenizer
from timeviper.training.optim import hold_still
from timeviper.weights import initialize
from timeviper.weights.export import meta_model
from timeviper.weights.tensors import TensorFolder

CLOSE = 1e-3  # relative; the ranks' sums are added in another order here, in bfloat16 perhaps


def replay(bundle: Path, overrides: Sequence[str] = (), *, layers: bool = False) -> bool:
    """Whether the step goes wrong again as it did; prints what happened then and now.

    Raises ValueError when the bundle lacks something, or when the data are no longer those of the run.
    """
    incident = Incident.read(bundle)
    if not (bundle / WEIGHTS).is_dir():
        raise ValueError(
            f"{bundle} has no weights: only the first train.guard.keep_weights incidents of a run keep them. "
            "incident.json has the figures of every layer."
        )
    recipe = load_recipe(bundle / CONFIG, overrides)
    print(f"{incident.recipe}, step {incident.step}, {incident.ranks} ranks, {incident.time}: {incident.reason}")
    print(f"then: loss {incident.loss:.6g}, gradient norm {incident.grad_norm:.6g}. {incident.findings.describe()}")
    packs = read_packs(incident, recipe, bundle.resolve().parent.parent)
    found = repeat(bundle, incident, recipe, packs)
    print(f"now:  loss {found.loss:.6g}, gradient norm {found.grad_norm:.6g}. {found.describe()}")
    if layers and (pack := found.first() or found.worst()):
        _print_layers(pack, found)
    same = reproduces(incident, found)
    print("reproduced" if same else "NOT reproduced: the hardware, libraries or kernels may differ (timeviper doctor)")
    return same


def reproduces(incident: Incident, found: Diagnosis) -> bool:
    """The same figures, and the first value that is not finite in the same layer of the same pack."""
    then, now = incident.findings.first(), found.first()
    if then is None or now is None:
        return then is now and all(map(_alike, (incident.loss, incident.grad_norm), (found.loss, found.grad_norm)))
    return (then.rank, then.index, then.first) == (now.rank, now.index, now.first)


def _alike(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE) or (not math.isfinite(a) and not math.isfinite(b))


def read_packs(incident: Incident, recipe: Recipe, run: Path | None = None) -> list[list[Pack]]:
    """The packs of every rank, read as the run read them. Raises ValueError where they hold other samples.

    run: its folder, where states of the plan lie that shorten the way to the step.
    """
    tokenizer = Tokenizer.load(recipe.model.tokenizer)
    plan = build_plan(recipe, tokenizer, PlanFiles(run) if run else None)
    if run:
        adopt(plan, run)
    planned = next(steps_without(plan, incident.step, incident.left_out))
    classes, cache = class_datasets(recipe.data.sources), BlockCache.of(recipe.data)
    reader = PackReader(tokenizer, pack_format(recipe), classes, cache=cache)
    shares = [reader[planned.share(rank, incident.ranks)] for rank in range(incident.ranks)]
    if away := next((share.away for share in shares if share.away), ""):
        raise StoreUnusable(away)
    then = {(p.rank, p.index): p for p in incident.findings.packs}
    for rank, share in enumerate(shares):
        for i, pack in enumerate(share.packs):
            before = then[rank, i]
            if (pack.keys, pack.lengths) != (before.keys, before.lengths):
                lost = "; ".join(f"{s.key}: {s.reason}" for s in share.skipped[:3])
                raise ValueError(
                    f"the data of step {incident.step} are not those of the run: pack {i} of rank {rank} held "
                    f"{', '.join(before.keys[:4])} ({sum(before.lengths)} tokens), now {', '.join(pack.keys[:4])} "
                    f"({sum(pack.lengths)} tokens). {f'Not readable: {lost}. ' if lost else ''}Start the replay in the "
                    "folder where the run started, or name the data (data.sources.<name>.shards=...)"
                )
    return [share.packs for share in shares]


def repeat(bundle: Path, incident: Incident, recipe: Recipe, packs: list[list[Pack]]) -> Diagnosis:
    """The step under the sharding of one rank, which is the path that training takes, precision included."""
    dispatch.configure(**vars(recipe.model.kernel))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    started = not dist.is_initialized()
    if started:
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = _load(bundle, recipe, device)
        place = plan_step(incident.step, frozenset(incident.left_out))
        set_transv(model, transv_at(place, recipe.model.transv, recipe.train.phases))
        rng = load_file(bundle / RNG)
        return examine(
            model,
            packs,
            incident.num_labels,
            1,
            0,
            device,
            before=lambda rank: set_rng_state(rng, device, rank),
            after=partial(hold_still, recipe=recipe, step=place),
        )
    finally:
        if started:
            dist.destroy_process_group()


def _load(bundle: Path, recipe: Recipe, device: torch.device) -> ShardedModel:
    recipe.parallel.replicas = 1
    files = TensorFolder(bundle / WEIGHTS)
    model = meta_model(recipe)
    names = model.state_dict().keys()
    if wrong := sorted(names ^ files.files.keys()):
        raise ValueError(f"{bundle / WEIGHTS} does not hold the model of its config.yaml: {', '.join(wrong[:5])}")
    mesh = init_device_mesh(device.type, (1,))
    sharded = parallelize(model, mesh, recipe.parallel)
    sharded.to_empty(device=home(device, recipe.parallel))
    stored = {name: lambda rows, name=name: files.read_rows(name, rows) for name in names}
    initialize.fill(sharded, sharded, stored)
    return cast(ShardedModel, sharded.train())


def _print_layers(pack: PackReport, found: Diagnosis) -> None:
    title = f"pack {pack.index} of rank {pack.rank}: rms (largest) of each output and of its gradient"
    table = Table("layer", "activation", "gradient", "dt", title=title, pad_edge=False)
    for name, size in pack.activations.items():
        gradient = pack.gradients.get(name)
        steps = pack.steps.get(name)
        table.add_row(name, _size(size), _size(gradient), f"{steps[0]:.3g} to {steps[1]:.3g}" if steps else "")
    console().print(table)
    norms = ", ".join(f"{layer} {norm:.3g}" for layer, norm in _largest(found.layers))
    print(f"largest gradient norms of weights: {norms}")
    if found.gates:
        print("gates tanh(alpha): " + ", ".join(f"{name} {gate:.4f}" for name, gate in found.gates.items()))


def _size(size: Size | None) -> str:
    if size is None:
        return ""
    bad = f", {size.not_finite} not finite" if size.not_finite else ""
    return f"{size.rms:.3g} ({size.largest:.3g}){bad}"


def _largest(layers: dict[str, float], most: int = 5) -> Iterator[tuple[str, float]]:
    """Those that are not finite first."""
    yield from sorted(layers.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf)[:most]
