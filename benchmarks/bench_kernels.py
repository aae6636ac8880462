"""Time and memory of the Mamba-2 scan and mixer, side by side with transformers' PyTorch path.

`python benchmarks/bench_kernels.py` writes `benchmarks/kernels_<hardware>_<date>.md`. Both sides run in turns in
one process, so that whatever else the machine does hits both; memory is measured in a process of its own for
each case. Where a GPU and the vendor's kernels are, they run as a third side.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from timeviper.config import DecoderConfig
from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd import ssd

CHUNK = 64  # tokens a chunk that the floor is counted for
PIECE = 16384  # tokens at a time in the growth table


@dataclass(frozen=True)
class Shape:
    """One Mamba-2 mixer."""

    width: int = 512
    heads: int = 16
    head_dim: int = 64
    state: int = 128
    groups: int = 8

    def products(self, what: str, L: int, grad: bool) -> float:
        """Floating point operations of the matrix products that the chunked form cannot do without."""
        inner, keys, states = (
            self.heads * self.head_dim,
            self.groups * self.state,
            self.heads * self.head_dim * self.state,
        )
        forward = CHUNK * (keys + inner) + 2 * states
        backward = CHUNK * (3 * keys + 2 * inner) + 4 * states if grad else 0
        if what == "mixer":
            projections = self.width * (3 * inner + 2 * keys + self.heads)
            forward, backward = forward + projections, backward + 2 * projections * grad
        return 2.0 * L * (forward + backward)


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    what: str  # scan, mixer, or pieces: the scan of a stream in pieces
    side: str  # ours, transformers or vendor
    L: int
    grad: bool
    device: str
    dtype: str

    def build(self, shape: Shape) -> Callable[[], None]:
        """A function that runs it once; inputs are made here and are not part of the measurement."""
        torch.manual_seed(0)
        device, dtype = torch.device(self.device), getattr(torch, self.dtype)
        if self.what == "pieces":
            return _in_pieces(self, shape, device, dtype)
        forward, leaves, out_shape = (_scan if self.what == "scan" else _mixer)(self, shape, device, dtype)
        weight = torch.randn(out_shape, device=device, dtype=dtype)

        def run() -> None:
            form = "vendor" if self.side == "vendor" else "torch"
            with torch.set_grad_enabled(self.grad), dispatch.use(ssd=form, conv1d=form, norm=form):
                y = forward()
                if self.grad:
                    torch.autograd.grad(y, leaves, weight.view_as(y))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run


Built = tuple[Callable[[], Tensor], list[Tensor], tuple[int, ...]]


def scan_inputs(shape: Shape, L: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, A, B, C, D, dt_bias, with steps of about 0.02 as trained models have them."""
    keys = (L, shape.groups, shape.state)
    x, B, C = (torch.randn(s, device=device, dtype=dtype) for s in ((L, shape.heads, shape.head_dim), keys, keys))
    dt = (torch.randn(L, shape.heads, device=device) - 4).to(dtype)
    A = -1 - 15 * torch.rand(shape.heads, device=device)
    return [x, dt, A, B, C, torch.ones_like(A), torch.zeros_like(A)]


def _scan(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> Built:
    tensors = [t.requires_grad_(case.grad) for t in scan_inputs(shape, case.L, device, dtype)]
    x, dt, A, B, C, D, bias = tensors
    if case.side == "transformers":
        from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

        options = {"D": D, "dt_bias": bias, "dt_softplus": True, "return_final_states": True}
        return lambda: mamba2_chunk_scan(x[None], dt[None], A, B[None], C[None], 128, **options)[0], tensors, x.shape
    bounds = Bounds([case.L], device)
    return lambda: ssd(x, dt, A, B, C, D, bias, bounds)[0], tensors, x.shape


def _mixer(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> Built:
    x = torch.randn(case.L, shape.width, device=device, dtype=dtype, requires_grad=case.grad)
    if case.side == "transformers":
        mixer = _their_mixer(shape).to(device, dtype)
        return lambda: mixer(x[None])[0], [x, *mixer.parameters()], x.shape
    from timeviper.model.mamba2 import Mamba2
    from timeviper.model.state import Span

    config = DecoderConfig(
        width=shape.width,
        ssm_heads=shape.heads,
        ssm_head_dim=shape.head_dim,
        ssm_state=shape.state,
        ssm_groups=shape.groups,
    )
    own = Mamba2(config).to(device, dtype)
    bounds = Bounds([case.L], device)
    return lambda: own(x, Span.fresh(bounds)), [x, *own.parameters()], x.shape


def _their_mixer(shape: Shape) -> torch.nn.Module:
    from transformers.models.nemotron_h.configuration_nemotron_h import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    config = NemotronHConfig(
        hidden_size=shape.width,
        mamba_num_heads=shape.heads,
        mamba_head_dim=shape.head_dim,
        ssm_state_size=shape.state,
        n_groups=shape.groups,
        chunk_size=128,
        layers_block_type=["linear_attention"],
    )
    mixer = NemotronHMamba2Mixer(config, layer_idx=0)
    mixer.time_step_limit = (0.0, float("inf"))  # its default clamps steps that the checkpoints do not clamp
    return mixer


def take_turns(cases: list[Case], shape: Shape, runs: int) -> list[list[float]]:
    """Seconds of each run of each case, after one run to warm up."""
    functions = [case.build(shape) for case in cases]
    for run in functions:
        run()
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(runs):
        for taken, run in zip(seconds, functions):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return seconds


def peak_memory(run: Callable[[], None], device: str) -> float:
    """MiB above what was held before, at the highest point of a run."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    """A memory figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def probe(case: Case, threads: int) -> float:
    """peak_memory of a case in a fresh process; a short run first loads what any run needs."""
    command = [sys.executable, __file__, "--threads", str(threads)]
    done = subprocess.run([*command, "--probe", json.dumps(asdict(case))], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def product_rate(device: str, dtype: str, size: int = 2048) -> float:
    """Floating point operations a second of one large matrix product."""
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def comparison(args: argparse.Namespace, shape: Shape) -> list[str]:
    """Rows of the table of both sides."""
    rate = product_rate(args.device, args.dtype)
    sides = ["ours", "transformers"]
    if not dispatch.obstacle("ssd", torch.device(args.device), getattr(torch, args.dtype)):
        sides.append("vendor")
    rows = [
        f"Matrix products: {rate / 1e9:.0f} GFLOP/s. Floor: the time of the products alone at that rate.",
        "",
        "| what | tokens | pass | side | median s | min - max | faster | extra MiB | of theirs | times the floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for what in args.what.split(","):
        for L in args.lengths:
            for grad in (False, True):
                cases = [Case(what, side, L, grad, args.device, args.dtype) for side in sides]
                seconds = take_turns(cases, shape, args.runs)
                memory = [probe(case, args.threads) for case in cases]
                theirs, floor = statistics.median(seconds[1]), shape.products(what, L, grad) / rate
                for case, taken, peak in zip(cases, seconds, memory):
                    median = statistics.median(taken)
                    rows.append(
                        f"| {what} | {L:,} | {'forward+backward' if grad else 'forward'} | {case.side} | {median:.3f} "
                        f"| {min(taken):.3f} - {max(taken):.3f} | {theirs / median:.2f}x | {peak:.0f} "
                        f"| {peak / memory[1]:.2f} | {median / floor:.2f} |"
                    )
                    print(rows[-1], flush=True)
    return rows


def growth(args: argparse.Namespace, shape: Shape) -> list[str]:
    """Rows of the table of the forward scan over ever longer streams."""
    rows = [
        f"Forward scan of ever longer streams: in one call (up to {args.whole:,} tokens), and in pieces of {PIECE:,}"
        " tokens, each of which takes up the state that the one before left.",
        "",
        "| tokens | one call: s | us a token | extra MiB | in pieces: s | us a token | extra MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    L = PIECE
    while args.growth >= L:
        whole = "| | |"
        if args.whole >= L:
            case = Case("scan", "ours", L, False, args.device, args.dtype)
            taken = min(take_turns([case], shape, 2)[0])
            whole = f"{taken:.2f} | {taken / L * 1e6:.2f} | {probe(case, args.threads):.0f} |"
        case = Case("pieces", "ours", L, False, args.device, args.dtype)
        (taken,) = take_turns([case], shape, 1)[0]
        rows.append(f"| {L:,} | {whole} {taken:.2f} | {taken / L * 1e6:.2f} | {probe(case, args.threads):.0f} |")
        print(rows[-1], flush=True)
        L *= 4
    return rows


def _in_pieces(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    length, pieces = min(PIECE, case.L), max(1, case.L // PIECE)
    x, dt, A, B, C, D, bias = scan_inputs(shape, length, device, dtype)

    def run() -> None:
        state, bounds = None, Bounds([length], device)
        with torch.no_grad(), dispatch.use(ssd="torch"):
            for _ in range(pieces):
                state = ssd(x, dt, A, B, C, D, bias, bounds, state)[1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", default="scan,mixer", help="scan, mixer or both")
    parser.add_argument("--lengths", type=lambda s: [int(n) for n in s.split(",")], default=[1024, 4096, 16384])
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--growth", type=int, default=1 << 20, help="longest stream of the growth table")
    parser.add_argument("--whole", type=int, default=1 << 18, help="longest stream of a single call there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args, shape = parse(), Shape()
    torch.set_num_threads(args.threads)
    if args.probe:
        case = Case(**json.loads(args.probe))
        replace(case, L=256).build(shape)()
        print(peak_memory(case.build(shape), case.device))
        return
    cpu = f"{platform.machine()}-cpu-{args.threads}threads"
    hardware = cpu if args.device == "cpu" else torch.cuda.get_device_name().replace(" ", "-")
    versions = f"torch {torch.__version__}, transformers {metadata.version('transformers')}"
    page = [
        f"# Scan and mixer on {hardware}, {args.dtype}",
        "",
        f"{date.today()}, {versions}, {args.runs} runs of each side in turns. {shape}.",
        "",
        f"    python benchmarks/bench_kernels.py {' '.join(sys.argv[1:])}",
        "",
        *comparison(args, shape),
        "",
        *growth(args, shape),
        "",
    ]
    suffix = "" if args.dtype == "float32" else f"-{args.dtype}"
    path = args.out / f"kernels_{hardware}{suffix}_{date.today()}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(page))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
