"""Recipe in, finished stage out: the run folder, the data, the module, the callbacks, one fit.

A run folder holds `config.yaml` (resolved), `checkpoints/`, `logs/` and, when the stage has finished, `export/`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from functools import reduce
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from timeviper.callbacks.build import build_callbacks, own_loggers
from timeviper.callbacks.guard import Rewind
from timeviper.config import LogConfig, Recipe
from timeviper.config.fields import differences
from timeviper.config.load import dump, load_recipe
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.left_out import plan_step, read_left_out, write_left_out
from timeviper.datamodules.on_change import FILE as DATA
from timeviper.datamodules.outlook import outlook, too_often
from timeviper.datamodules.processes import LostLoader
from timeviper.errors import ConfigError, Problem
from timeviper.features.check import check_features
from timeviper.files import whole_file
from timeviper.planning.host import check_host_memory, host_needs
from timeviper.planning.node import check_node_memory, index_needs, loader_needs, node_line
from timeviper.tokenizer import Tokenizer
from timeviper.training.ends import chain, foreseen
from timeviper.training.inputs import check_template, ready_recipe
from timeviper.training.launch import check_ranks, ranks
from timeviper.training.lock import run_lock
from timeviper.training.module import ViperModule
from timeviper.training.store import CheckpointStore, check_readable, step_of
from timeviper.training.strategy import Sharded
from timeviper.weights.export import CONFIG, check_previous_stage, find_export, is_export, read_lineage, starting_points

log = logging.getLogger("timeviper")

MEET = 1800.0  # s for which ranks wait for each other at least

# Settings that may change when a run continues: they touch neither the numbers nor the data order.
_MAY_CHANGE = (
    "about",
    "out",
    "eval",
    "log",
    "callbacks",
    "data.workers",
    "data.prefetch",
    "data.prefetch_gb",
    "data.cache",
    "data.cache_gb",
    "data.patience",
    "data.val",
    "data.max_skipped",
    "data.on_change",
    "train.validate_every",
    "train.validate_samples",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.checkpoint_async",
    "train.stop_within",
    "train.guard",
    "train.watchdog",
    "parallel.activation_checkpointing",
    "parallel.tokens_per_piece",
    "parallel.offload_activations",
    "parallel.offload_params",
    "parallel.reduce_every_pack",
    "parallel.replicas",
    "parallel.compile",
    "model.kernel",
)

# Of these, what rounds otherwise: it may have to change with the machine, and is said.
_ROUNDS = ("parallel.compile", "model.kernel")


def train(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Path:
    """Run a stage, or continue it where it stopped, as `timeviper train` does; returns its run folder.

    recipe: a YAML file, one of the package's recipes by name, such as "tiny/stage2_instruct", or what `load_recipe`
    gave. overrides: settings that differ from it, such as ["train.steps=100", "out=runs/short"]; relative paths start
    at the working directory. A stage that has finished is not repeated. Under torchrun it is one rank of the run.

    Raises:
        ConfigError: with every problem of the recipe, and all that it needs and that is not there.
        ValueError, OSError: with what to do; what is on disk stays valid whatever happens.
        KeyboardInterrupt: when it was asked to stop (Ctrl-C, SIGTERM, SIGUSR1), once its state is saved.
    """
    ready = ready_recipe(recipe, overrides)
    if run_stage(ready, command="the same call") is Outcome.STOPPED:
        raise KeyboardInterrupt(f"stopped and saved in {ready.run_dir}; the same call continues")
    return Path(ready.run_dir)


class Outcome(Enum):
    """How a stage has ended."""

    FINISHED = "finished"
    STOPPED = "asked to stop, and saved"
    DOUBTFUL = "finished, but its export can hardly be what was wanted; why was said"


def run_stage(recipe: Recipe, *, command: str = "the same command") -> Outcome:
    """Run or continue a stage to its last step and its export, or until it is asked to stop.

    `command` is what continues the run, for messages.
    Raises ConfigError, ValueError or OSError with what to do; what is on disk stays valid whatever happens.
    """
    run = Path(recipe.run_dir)
    if _finished(run, recipe):
        print(f"{recipe.name}: finished already, nothing to do ({run}/export)")
        return _outcome(run)
    local, nodes = ranks()
    check_ranks(recipe, local * nodes)
    check_host_memory(recipe, local, nodes, "cuda" if torch.cuda.is_available() else "cpu")
    check_previous_stage(recipe)
    with run_lock(run, "name another folder (out=runs/...)"):
        return _run_alone(recipe, run, command)


def _run_alone(recipe: Recipe, run: Path, command: str) -> Outcome:
    """`run_stage` while no other process writes into the run folder."""
    store = CheckpointStore(run / "checkpoints", recipe.train.keep_checkpoints, recipe)
    checkpoint = store.latest()
    if checkpoint:
        check_readable(checkpoint, recipe.run_dir)
        _check_same_recipe(checkpoint if (checkpoint / CONFIG).is_file() else run, recipe)
    tokenizer = Tokenizer.load(recipe.model.tokenizer)
    _check_vocabulary(recipe, tokenizer)
    check_template(recipe, tokenizer)
    left_out = read_left_out(run)
    quiet_lightning()
    share_cores(recipe.data.workers)
    while True:
        try:
            finished = _fit(recipe, tokenizer, store, checkpoint, left_out, command)
            return _outcome(run) if finished else Outcome.STOPPED
        except Rewind as back:
            checkpoint = back.checkpoint
            left_out = _without(back, recipe, left_out, run)
        except (RuntimeError, EOFError, OSError) as error:
            told = foreseen(error)
            if told is None:
                raise
            kept = store.latest()
            start = kept.name if kept else "its beginning"
            raise OSError(f"{told} The run continues from {start} with: {command}") from error


def _first() -> bool:
    """Whether this is the rank that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _outcome(run: Path) -> Outcome:
    """Of a stage that has been exported; what speaks against the export is said each time."""
    doubts = read_lineage(run / "export").get("doubts", [])
    for doubt in doubts if _first() else ():
        print(f"warning: {run / 'export'}: {doubt}", file=sys.stderr)
    return Outcome.DOUBTFUL if doubts else Outcome.FINISHED


def _fit(
    recipe: Recipe,
    tokenizer: Tokenizer,
    store: CheckpointStore,
    checkpoint: Path | None,
    left_out: frozenset[int],
    command: str,
) -> bool:
    """From a checkpoint (None: the beginning) to the end, or to where the run is asked to stop, which returns False."""
    run = Path(recipe.run_dir)
    data = VideoDataModule(recipe, tokenizer, left_out, (checkpoint, step_of(checkpoint)) if checkpoint else None)
    store.beside = data.beside
    check_features(recipe, data.plan.sources, data.val_sources)
    local, nodes = ranks()
    needs = loader_needs(recipe, data.plan, local * nodes)
    offloaded = sum(host_needs(recipe, local * nodes, "cuda" if torch.cuda.is_available() else "cpu").values())
    _, shared = index_needs(data.plan.sources.values())
    check_node_memory(recipe, needs, local, offloaded, shared)
    if _first():
        for line in data.changes if checkpoint else starting_points(recipe):
            print(f"{recipe.name}: {line}", flush=True)
        found = outlook(data.plan, recipe.train)
        for line in (*map(str, found), *too_often(found), node_line(needs, local, offloaded, shared)):
            print(f"{recipe.name}: {line}", flush=True)
    data.start()
    run.mkdir(parents=True, exist_ok=True)
    with whole_file(run / CONFIG) as partial:  # every rank writes the same
        dump(recipe, partial)
    pl.seed_everything(recipe.seed, verbose=False)
    callbacks = build_callbacks(recipe, run, tokenizer, left_out, command, data.at_hand)
    data.before_reading = callbacks.checkpoints.listen
    types = sorted(set[str]().union(*(source.types for source in data.val_sources.values())))
    module = ViperModule(recipe, types, callbacks.guard)
    trainer = build_trainer(recipe, run, store, callbacks.in_order, step_of(checkpoint) if checkpoint else 0)
    if checkpoint and trainer.is_global_zero:
        print(f"{recipe.name}: continuing from {checkpoint.name}")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, OSError, EOFError) as error:
        reading = ", ".join(key for key, _ in data.reading.now())  # a process that is gone has kept its slot
        for lost in (seen for seen in chain(error) if reading and isinstance(seen, LostLoader)):
            lost.add_note(f"Being read then: {reading}.")
        raise
    return not callbacks.checkpoints.stopped


def _without(back: Rewind, recipe: Recipe, left_out: frozenset[int], run: Path) -> frozenset[int]:
    """The steps of the plan that are left out after going back: those before, and the offending ones."""
    start = step_of(back.checkpoint) if back.checkpoint else 0
    first = max(start, back.step + 1 - recipe.train.guard.leave_out)
    left_out |= {plan_step(step, left_out) for step in range(first, back.step + 1)}
    if dist.get_rank() == 0:
        write_left_out(run, left_out)
    return left_out


def quiet_lightning() -> None:
    """Lightning's own start-up lines say nothing that ours do not; its warnings on loaders are about choices
    that are meant (see `datamodules/loader.py`)."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The last: a type of question that none of the validation samples has.
    expected = ("Consider setting", "You have overridden", "`isinstance", "Found .* in eval mode")
    expected += ("The ``compute``", "The `srun` command")
    for message in expected:
        warnings.filterwarnings("ignore", f".*{message}")


def share_cores(workers: int) -> None:
    """On a CPU, leave a core to each loader process: threads that wait for a busy core make every operation
    of a small model several times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores // ranks()[0] - workers))


def build_trainer(
    recipe: Recipe, run: Path, store: CheckpointStore, callbacks: list[pl.Callback], start: int
) -> pl.Trainer:
    """The Trainer of every stage; sharding and precision are `parallel.py`'s, not its."""
    local, nodes = ranks()
    validates = bool(recipe.data.val)
    gpu = torch.cuda.is_available()
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=local,
        num_nodes=nodes,
        strategy=Sharded(
            store,
            data_parallel_size=local * nodes,
            tensor_parallel_size=1,
            # With offloading, the norm of gradients on the host is summed over ranks there.
            process_group_backend="cpu:gloo,cuda:nccl" if gpu else "gloo",
            timeout=timedelta(seconds=max(MEET, 2 * recipe.data.patience)),  # others wait for a rank without data
        ),
        precision="32-true",
        max_steps=recipe.train.steps,
        max_epochs=-1,
        val_check_interval=(recipe.train.validate_every or recipe.train.steps) if validates else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validates else 0,
        log_every_n_steps=recipe.log.every,
        use_distributed_sampler=False,
        enable_checkpointing=False,  # callbacks/checkpoints.py does it, atomically
        enable_progress_bar=False,  # callbacks/progress.py
        enable_model_summary=False,
        logger=[*_loggers(recipe.log, run, start), *own_loggers(recipe)],
        callbacks=callbacks,
    )


def _loggers(cfg: LogConfig, run: Path, start: int) -> list[Logger]:
    loggers: list[Logger] = []
    if cfg.tensorboard:
        loggers.append(TensorBoardLogger(run, name="logs", version=""))
    if cfg.csv:  # one file a start: the logger clears an existing one
        loggers.append(CSVLogger(run, name="logs", version=f"from-step-{start}"))
    return loggers


def _finished(run: Path, recipe: Recipe) -> bool:
    """Whether the stage has been exported, with these settings. Other settings are an error: nothing is overwritten."""
    export = run / "export"
    if not is_export(export):
        return False
    lineage = read_lineage(export)
    if lineage["step"] < recipe.train.steps and not lineage.get("ended_early"):
        return False
    _check_same_recipe(export, recipe)
    return True


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to continue, or to count as finished, a run of other settings; say what will round otherwise."""
    before = load_recipe(folder / CONFIG)
    now, then = (_only(r, _ROUNDS) for r in (recipe, before))
    if folder.name != "export" and (changed := differences(now, then)) and _first():
        print(f"{recipe.name}: continuing with other kernels, so with other rounding: {'; '.join(changed)}", flush=True)
    told = folder.name == "export" or (folder / DATA).is_file()  # by a digest, whether the shards are the same
    if changed := differences(_fixed(recipe, told), _fixed(before, told)):
        listed = "\n        ".join(changed)
        longer = ""
        if recipe.train.steps > before.train.steps:
            longer = (
                "\n      Learning rates and phases are functions of train.steps, so a run never changes it. To train "
                f"longer, let a run of its own start from this one: train.init_from={recipe.run_dir} out=runs/... "
                "train.steps=MORE (a new schedule; optim.warmup=0 goes on without a new warm-up)."
            )
        problem = Problem(
            "out",
            recipe.run_dir,
            f"This folder holds a run with other settings:\n        {listed}\n"
            f"      Give these settings a folder of their own (out=runs/...), or remove this one.{longer}",
        )
        raise ConfigError(recipe.name, [problem])


def _fixed(recipe: Recipe, moved: bool) -> dict:
    """A recipe as nested dicts, without what may change; with `moved`, that is also where shards lie."""
    data = dataclasses.asdict(recipe)
    for key in _MAY_CHANGE:
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section[name]
        section.pop(last)
    for source in data["data"]["sources"].values() if moved else ():
        source["shards"] = bool(source["shards"])
    start = data["train"]["init_from"]  # a run folder means the export in it
    data["train"]["init_from"] = str(find_export(start)) if start else start
    return data


def _only(recipe: Recipe, keys: Sequence[str]) -> dict:
    """Some settings, by their dotted keys."""
    data = dataclasses.asdict(recipe)
    return {key: reduce(dict.__getitem__, key.split("."), data) for key in keys}


def _check_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > recipe.model.decoder.vocab_size:
        problem = Problem(
            "model.decoder.vocab_size",
            recipe.model.decoder.vocab_size,
            f"is smaller than the tokenizer's {tokenizer.vocab_size} tokens; set it to that or more.",
        )
        raise ConfigError(recipe.name, [problem])
