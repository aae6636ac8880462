"""Whole runs of the command line on several gloo ranks, small enough to be started by the dozen."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from timeviper.callbacks import watchdog
from timeviper.cli.main import main
from timeviper.datamodules.world.render import encode_image
from timeviper.inference.journal import Journal
from timeviper.parallel import local_part
from timeviper.training.module import ViperModule

FORK = multiprocessing.get_context("forkserver")
# What takes seconds to import is imported once, in the server that ranks are forked from. (It does not have this
# folder on its path, so it cannot import this module.)
FORK.set_forkserver_preload(
    ["timeviper.trainer", "timeviper.inspection.replay", "timeviper.cli.main", "timeviper.datamodules.world.render"]
)

RECIPE: dict[str, Any] = {
    "name": "small",
    "size": "test",
    "model": {
        "preset": "tiny",
        "towers": {"main": {"width": 32, "layers": 1, "heads": 2, "mlp_width": 48}},
        "decoder": {
            "layout": "M*-M",
            "width": 32,
            "mlp_width": 48,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 16,
            "ssm_heads": 2,
            "ssm_head_dim": 16,
            "ssm_state": 8,
            "ssm_groups": 1,
            "tie_embeddings": False,
        },
        "transv": {"stages": {"late": {"layer": 1, "keep": 0.5, "select": "attention"}}},
    },
    "data": {
        "sources": {"pictures": {"dataset": "jobs:Pictures"}},
        "frames": {"max_frames": 1},
        "tokens_per_pack": 60,
        "packs_per_step": 4,
        "workers": 0,
    },
    "train": {"trainable": ["projector", "decoder", "transv"], "steps": 8, "checkpoint_every": 3},
    "optim": {"lr": 1e-2, "schedule": "constant", "warmup": 0.0},
    "parallel": {"param_dtype": "float32"},
    "log": {"every": 1, "tensorboard": False},
}


class Pictures:
    """A source of noise: 40 pictures with an answer each. One of them may hang or end the process that opens it."""

    ODD = 12  # first read for step 2, by the second of two ranks
    KEY = f"pictures/jobs:Pictures/{ODD}#0"

    def __init__(self, count: int = 40, odd: str = "", rank: int = 0) -> None:
        """odd: hang, or how the process ends that reads it: die (SIGKILL), crash (SIGSEGV), leave (exit code 3)."""
        self.count, self.odd = count, odd

    def __len__(self) -> int:
        return self.count

    def record(self, i: int) -> dict[str, Any]:
        answer = "purple" if i == self.ODD else "ring " * (i % 3 + 1)
        said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
        return {"media": [{"type": "image", "member": "png"}], "messages": said}

    def open(self, i: int, member: str) -> bytes:
        if i == self.ODD and self.odd == "hang":
            time.sleep(3600)
        if i == self.ODD and self.odd == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if i == self.ODD and self.odd == "crash":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        if i == self.ODD and self.odd == "leave":
            os._exit(3)
        return encode_image(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8), "png")


def write_recipe(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


class Job:
    """`timeviper <verb>` on `world` ranks, with the environment that torchrun gives them."""

    def __init__(
        self, folder: Path, world: int, *args: str, first: Callable[..., None] | None = None, **told: Any
    ) -> None:
        """first: called with `told` in every rank before it starts."""
        self.folder = folder
        self.out = folder / f"job-{time.monotonic_ns()}"
        self.out.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ranks: list[BaseProcess] = [
            FORK.Process(target=_rank, args=(rank, world, port, self.out, args, first, told), daemon=True)
            for rank in range(world)
        ]
        for rank in self.ranks:
            rank.start()

    def said(self, rank: int = 0) -> str:
        file = self.out / f"{rank}.log"
        return file.read_text() if file.is_file() else ""

    def until(self, text: str, rank: int = 0, seconds: float = 60) -> None:
        """Wait until a rank has said this."""
        end = time.monotonic() + seconds
        while text not in self.said(rank):
            late = time.monotonic() > end or not self.ranks[rank].is_alive()
            assert not late, f"{text!r} not said:\n{self.said(rank)}"
            time.sleep(0.002)

    def end(self, seconds: float = 120) -> list[int | None]:
        """Exit codes, when all ranks have ended (-9: killed here, after `seconds`)."""
        end = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(end - time.monotonic(), 0.1))
            rank.kill()
            rank.join()
        return [rank.exitcode for rank in self.ranks]


def run(folder: Path, world: int, *args: str, **options: Any) -> Job:
    """A job that has ended well."""
    job = Job(folder, world, *args, **options)
    codes = job.end()
    assert codes == [0] * world, "\n".join(f"rank {r}: exit {c}\n{job.said(r)}" for r, c in enumerate(codes))
    return job


def _rank(rank: int, world: int, port: int, out: Path, args: tuple[str, ...], first: Any, told: dict[str, Any]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    handle = os.open(out / f"{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    sys.argv = ["timeviper", *args]
    if first is not None:
        first(rank, **told)
    main()


def plant(rank: int, *, step: int, weight: str, row: int, value: float = math.nan) -> None:
    """Make one value of a weight of the live model bad, the first time that `step` is taken, and for that step."""
    plain, left = ViperModule.training_step, [1]

    def training_step(self: ViperModule, batch: Any, index: int) -> None:
        if self.global_step != step or not left:
            return plain(self, batch, index)
        left.clear()
        with torch.no_grad():
            part, rows = local_part(dict(self.model.named_parameters())[weight])
            mine = part[row - rows.start : row - rows.start + 1] if row >= rows.start else part[:0]
            before = mine.clone()
            mine[:, 0] = value
        plain(self, batch, index)
        with torch.no_grad():
            mine.copy_(before)

    ViperModule.training_step = training_step  # type: ignore[method-assign]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "export" / "model.safetensors")


def losses(run: Path) -> dict[int, float]:
    """Step -> loss, the last one where a step was taken more than once."""
    found: dict[int, float] = {}
    for file in sorted((run / "logs").glob("from-step-*/metrics.csv"), key=lambda f: f.stat().st_mtime_ns):
        header, *rows = [line.split(",") for line in file.read_text().splitlines()]
        for row in rows:
            if value := row[header.index("train/loss")]:
                found[int(row[header.index("step")])] = float(value)
    return found


def incident(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "incident.json").read_text())


def small_files(rank: int) -> None:
    """As on a disk that is full: no file may grow beyond 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def go_away_at(rank: int, *, stop: str, steps: tuple[int, ...]) -> None:
    """Before the data of these steps are read, rank 0 makes a file, and while it is there the server is away."""
    from timeviper.datamodules.reader import PackReader
    from timeviper.datamodules.remote import patience

    patience.FIRST_WAIT, patience.LONGEST_WAIT, patience.TOLD_AFTER = 0.02, 0.2, 0.3
    plain = PackReader._read_step

    def read(self: PackReader, plan: Any, room: Any) -> Any:
        if plan.step in steps and rank == 0:
            Path(stop).touch()
        return plain(self, plan, room)

    PackReader._read_step = read  # type: ignore[method-assign]


def no_grace(rank: int) -> None:
    """The watchdog alarms at once."""
    watchdog.GRACE = 0.5


def die(rank: int, *, who: int, count: int) -> None:
    """Rank `who` is killed while it writes a line, after so many groups."""
    plain, left = Journal.add, [count]

    def add(journal: Journal, entries: Any) -> None:
        if rank == who and left[0] == 0:
            with (journal.folder / f"rank-{rank}.jsonl").open("a") as file:
                file.write('{"of": "')
            os.kill(os.getpid(), signal.SIGKILL)
        plain(journal, entries)
        left[0] -= 1

    Journal.add = add  # type: ignore[method-assign]


def full_disk_for_exports(rank: int) -> None:
    from timeviper.weights import tensors

    def save_file(*_: object, **__: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("I/O error: No space left on device (os error 28)")

    tensors.save_file = save_file


def spoil_steps(rank: int) -> None:
    """Every step of training is not finite, and neither is the held-out loss."""

    def bad(plain: Any) -> Any:
        def step(self: ViperModule, batch: Any, index: int) -> None:
            with torch.no_grad():
                next(p for n, p in self.model.named_parameters() if "norm_f" in n).fill_(float("nan"))
            plain(self, batch, index)

        return step

    ViperModule.training_step = bad(ViperModule.training_step)  # type: ignore[method-assign]
