"""Peak memory of building a sharded model, of a training step with activation checkpointing, and of the loss.

python benchmarks/bench_sharding.py [--out benchmarks/NAME.md]

Every case runs in processes of its own on gloo ranks. Measured is anonymous memory (RssAnon of Linux) above that of
the process with torch loaded: pages of a weights file that the system maps and may drop at any time do not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from bench_chains import hardware
from torch.distributed.device_mesh import init_device_mesh

from timeviper.config import (
    DecoderConfig,
    ModelConfig,
    ParallelConfig,
    Recipe,
    SourceConfig,
    TowerConfig,
    TrainConfig,
)
from timeviper.kernels.cross_entropy import linear_cross_entropy_reference, linear_cross_entropy_torch
from timeviper.pack import Kind, Pack
from timeviper.parallel import ShardedModel, WholeTensors, parallelize
from timeviper.tokenizer import Tokenizer
from timeviper.training.step import accumulate
from timeviper.weights.export import Model, build_model, write_export

MB = 2**20
TOKENS = 2048  # of the pack of a training step


def middle_recipe(layers: int = 5, **parallel: Any) -> Recipe:
    """320 M parameters in the proportions of nano9b: `layers` times 3 Mamba-2, 1 attention and 3 MLP blocks."""
    decoder = DecoderConfig(
        layout="M-M-M*-" * layers,
        vocab_size=32768,
        width=1024,
        mlp_width=4096,
        heads=8,
        kv_heads=2,
        ssm_heads=32,
        ssm_head_dim=64,
        ssm_state=64,
    )
    tower = TowerConfig(
        family="vit", image_size=32, patch_size=8, width=96, layers=2, heads=4, mlp_width=192, feature_layer=-1
    )
    return Recipe(
        name="middle",
        size="bench",
        model=ModelConfig(towers={"main": tower}, decoder=decoder),
        train=TrainConfig(trainable=["projector", "decoder"]),
        parallel=replace(ParallelConfig(param_dtype="float32"), **parallel),
    )


class Peak:
    """Largest anonymous memory of this process inside the `with`, in bytes above that at its start."""

    def __enter__(self) -> Peak:
        self.start = self.bytes = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous_bytes()) - self.start


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("RssAnon is not in /proc/self/status: this benchmark needs Linux")


def build(recipe: Recipe) -> tuple[int, int]:
    """(peak of building on this rank, bytes of the whole model in float32)"""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with Peak() as peak:
        model = build_model(recipe, lambda m: parallelize(m, mesh, recipe.parallel))
    return peak.bytes, sum(4 * p.numel() for p in model.parameters())


def export(recipe: Recipe, folder: Path) -> None:
    recipe.data.sources = recipe.data.val = {"none": SourceConfig(shards="none")}
    write_export(folder, WholeTensors(build_model(recipe)), recipe, Tokenizer.load(""), step=1)


def step(recipe: Recipe) -> tuple[int, int]:
    """(peak of the second forward and backward pass of a pack of 2,048 tokens, bytes of the gradients)"""
    mesh = init_device_mesh("cpu", (1,))
    place: Callable[[Model], ShardedModel] = lambda m: parallelize(m, mesh, recipe.parallel)  # noqa: E731
    model = cast(ShardedModel, build_model(recipe, place))
    ids = torch.randint(1, recipe.model.decoder.vocab_size, (TOKENS,))
    kind = torch.full((TOKENS,), int(Kind.ANSWER), dtype=torch.uint8)
    frames = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    labels = torch.where(torch.arange(TOKENS) % 16 == 0, ids, -100)
    pack = Pack(ids, labels, kind, [TOKENS], frames, torch.zeros(0, dtype=torch.float64), [0])
    for _ in range(2):  # the first also makes what stays, the gradients
        with Peak() as peak:
            accumulate(model, [pack], torch.tensor(float(pack.num_labels)), 1, torch.device("cpu"))
    return peak.bytes, sum(4 * p.numel() for p in model.parameters() if p.grad is not None)


def loss(chunk: int) -> tuple[int, float]:
    """(peak of loss and gradients of 2,048 label tokens, largest difference of a gradient from that of whole logits,
    relative to its largest value); a chunk of 0: with whole logits"""
    cfg = middle_recipe().model.decoder
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, cfg.width, requires_grad=True)
    weight = (torch.randn(cfg.vocab_size, cfg.width) * 0.02).requires_grad_()
    labels = torch.randint(cfg.vocab_size, (TOKENS,))

    def gradients(size: int) -> tuple[torch.Tensor, ...]:
        form = linear_cross_entropy_torch if size else linear_cross_entropy_reference
        return torch.autograd.grad(form(hidden, weight, labels, size)[0], (hidden, weight))

    gradients(chunk)
    with Peak() as peak:
        ours = gradients(chunk)
    theirs = gradients(0)
    return peak.bytes, max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


def run(ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on every rank, in fresh processes; the results."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, queue, function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{function.__name__} failed on a rank; its error stands above")
    return [queue.get() for _ in processes]


def _rank(rank: int, ranks: int, port: int, queue: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    queue.put(function(*args))
    dist.destroy_process_group()


def report() -> Iterator[str]:
    """The lines of the file, as they are measured."""
    yield from (
        "## Building",
        "",
        "| weights | ranks | whole model, MB | peak of a rank, MB | share |",
        "|---|---|---|---|---|",
    )
    with tempfile.TemporaryDirectory() as folder:
        run(1, export, middle_recipe(), Path(folder) / "export")
        stored = middle_recipe()
        stored.train.init_from = str(Path(folder) / "export")
        for name, recipe in (("random", middle_recipe()), ("safetensors", stored)):
            for ranks in (1, 2, 4):
                results = run(ranks, build, recipe)
                peak, whole = max(p for p, _ in results), results[0][1]
                yield f"| {name} | {ranks} | {whole / MB:,.0f} | {peak / MB:,.0f} | {peak / whole:.2f} |"
    yield from ("", f"## A step of {TOKENS:,} tokens, one rank, 14 blocks", "")
    yield from ("| activation checkpointing | peak above weights and gradients, MB |", "|---|---|")
    for policy in ("none", "mlp", "mamba", "mamba,mlp", "all"):
        ((peak, _),) = run(1, step, middle_recipe(layers=2, activation_checkpointing=policy))
        yield f"| {policy} | {peak / MB:,.0f} |"
    yield from ("", f"## Cross-entropy of {TOKENS:,} label tokens over 32,768 words", "")
    yield from ("| logits at a time | peak with both gradients, MB | gradients differ by |", "|---|---|---|")
    for chunk in (0, 1024, 256):
        ((peak, off),) = run(1, loss, chunk)
        yield f"| {f'{chunk:,} tokens' if chunk else 'all'} | {peak / MB:,.0f} | {off:.1e} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_sharding", description=__doc__)
    default = Path("benchmarks") / f"sharding_{platform.machine()}-cpu_{date.today().isoformat()}.md"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args(argv).out
    head = ["# Memory of building and of a step", "", f"{hardware()}; torch {torch.__version__}; float32, gloo;"]
    head += [f"{date.today().isoformat()}. Anonymous memory of a rank above that of the process before.", ""]
    lines = [*head, "Made by `python benchmarks/bench_sharding.py`.", ""]
    print("\n".join(lines), flush=True)
    for line in report():
        print(line, flush=True)
        lines.append(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
