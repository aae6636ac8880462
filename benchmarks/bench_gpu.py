"""What only a GPU can show, in about 12 minutes: kernels, errors, waits, prefill, LoRA steps, decode at full size.

    python benchmarks/bench_gpu.py                            # writes benchmarks/gpu_<device>_<date>.md
    python benchmarks/bench_gpu.py --only a,d --minutes 8     # some parts; a later start does the rest
    python benchmarks/bench_gpu.py --device cpu --divide 64   # a trial of the script itself, into build/

Every part runs in a process of its own within a time of its own. What it has measured is kept in a file beside the
page (`.jsonl`), so a part that crashes or is stopped leaves its rows and one that says what happened; the same command
goes on with what is missing, `--again` starts anew. Vendor kernels are measured where they are installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib import import_module, metadata
from pathlib import Path
from typing import IO, Any

from bench_gpu_page import Case, Part, Records, Setting, page

ORDER = "adcbef"  # by what is worth most, where time is short
PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "flash-attn", "transformers")
BROKEN = 3  # exit code of a process whose device is of no use any more
LEAST = 5.0  # seconds: with less left no part begins


def load_parts(modules: str) -> tuple[list[Part], list[str]]:
    """The parts by worth, and why those of a module are not there: a machine that is lent may lack a package."""
    parts, lacking = [], []
    for name in modules.split(","):
        try:
            parts += import_module(name).PARTS
        except ImportError as error:
            lacking.append(f"all of {name}.py: {error}")
            print(f"not run: {lacking[-1]}", flush=True)
    return sorted(parts, key=lambda part: ORDER.index(part.letter)), lacking


# ---- the process of a part ------------------------------------------------------------------------------


def work(part: Part, setting: Setting, todo: Sequence[str], records: Records, parent: int) -> int:
    """Run the named cases one after the other; the exit code."""
    for case in part.cases(setting):
        if case.key not in todo:
            continue
        if os.getppid() != parent:  # nobody waits for it: the device is free for the next start
            return 1
        if not attempt(part, case, records):
            return BROKEN
    return 0


def attempt(part: Part, case: Case, records: Records) -> bool:
    """Run a case and record what comes of it; whether the device can go on."""
    named = {"part": part.letter, "case": case.key}
    records.add(**named, state="started")
    print(f"{part.letter}  {case.key}", flush=True)
    begun = time.monotonic()
    try:
        for row in case.rows():
            records.add(**named, state="row", row=row)
    except Exception as error:  # whatever it is, the next case may run
        why = f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0][:300]}"
        records.add(**named, state="failed", why=why)
        print(f"   {why}", flush=True)
    else:
        records.add(**named, state="done", seconds=round(time.monotonic() - begun, 1))
    return let_go()


def let_go() -> bool:
    """Free what a case held; False where the device answers no more, as after an illegal address."""
    gc.collect()
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
        try:
            cuda.synchronize()
            cuda.empty_cache()
        except Exception:
            return False
    return True


# ---- the process that watches ---------------------------------------------------------------------------


def supervise(part: Part, setting: Setting, records: Records, limit: float, command: Sequence[str]) -> None:
    """Run what a part has not measured yet, in processes of its own, at most `limit` seconds in all."""
    begun, at = time.monotonic(), len(records.lines())
    found = records.found(part.letter)
    todo = [case.key for case in part.cases(setting) if found.get(case.key) is None or found[case.key].state != "done"]
    try:
        while todo:
            left = limit - (time.monotonic() - begun)
            over = f"the {limit:.0f} s for it were over"
            why = child([*command, "--child", part.letter, "--cases", json.dumps(todo)], left) if left > 0 else "time"
            late = why == "time"
            why = over if late else why or "the process ended without a word"
            state = records.found(part.letter)
            tried = [r["case"] for r in records.lines()[at:] if r.get("state") == "started"]
            for key in tried:
                if state[key].state == "started":
                    records.add(part=part.letter, case=key, state="failed", why=why)
            rest = [key for key in todo if key not in tried]
            if rest and (late or len(rest) == len(todo)):
                records.add(part=part.letter, state="stopped", why=why)
                return
            todo = rest
    except KeyboardInterrupt:
        records.add(part=part.letter, state="stopped", why="it was stopped by hand")
        raise
    finally:
        records.add(part=part.letter, state="ended", seconds=time.monotonic() - begun)


def child(command: Sequence[str], seconds: float) -> str:
    """Run a process to its end or for so long; why it ended, empty where all is well, `time` where time was up."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "time"
        finally:  # also on Ctrl-C; loaders and compilers that it started end with it
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code == 0:
            return ""
        last = last_line(errors)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process ended with {name}{f' ({last})' if last else ''}"


def last_line(file: IO[str]) -> str:
    file.seek(0)
    lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    sys.stderr.write("".join(f"   {line}\n" for line in lines[-20:]))
    return lines[-1][:300] if lines else ""


# ---- the page -------------------------------------------------------------------------------------------


def device_name(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} CPU"
    import torch

    return torch.cuda.get_device_name()


def head(setting: Setting, command: str) -> list[str]:
    """Machine, versions and what the figures may be taken for."""
    import torch

    from timeviper.kernels import dispatch

    lines = [f"# One GPU: {device_name(setting.device)}", ""]
    if setting.device == "cpu" or setting.divide > 1:
        lines[0] = f"# Trial of bench_gpu.py on {device_name(setting.device)}"
        lines += [f"**A TRIAL OF THE SCRIPT, NOT A MEASUREMENT OF A GPU: all sizes divided by {setting.divide}, "]
        lines[-1] += f"on {device_name(setting.device)}. Its figures say nothing but that the code runs.**"
        lines += [""]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines += [f"{date.today()}; Python {platform.python_version()}; {versions}.", ""]
    if setting.device != "cpu":
        gpu = torch.cuda.get_device_properties(0)
        size = f"{gpu.total_memory / 1e9:.0f} GB, {gpu.multi_processor_count} multiprocessors"
        lines += [f"{gpu.name}, {size}, CUDA {torch.version.cuda}; {os.cpu_count()} host cores.", ""]
    lines += ["Written by:", "", f"    {command}", "", "GB are 10^9 bytes. Weights and inputs are random.", ""]
    lines += ["| operation | form that `auto` takes in bfloat16 | why |", "|---|---|---|"]
    report = dispatch.report(setting.device, torch.bfloat16)
    return lines + [f"| {row.op} | {row.used} | {row.why.replace('|', '/')} |" for row in report]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page; default benchmarks/gpu_<device>_<date>.md, a trial: build/")
    parser.add_argument("--only", default=ORDER, help="letters of parts, in any order: a,d")
    parser.add_argument("--minutes", type=float, default=12.0, help="no part begins or goes on after these")
    parser.add_argument("--again", action="store_true", help="forget what an earlier start measured")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--divide", type=int, default=1, help="all sizes are divided by it")
    parser.add_argument(
        "--modules", default="bench_gpu_kernels,bench_gpu_models,bench_gpu_steps", help=argparse.SUPPRESS
    )
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)  # seconds of every part, in place of its own
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if strange := set(args.only) - {*ORDER, ","}:
        parser.error(f"--only: there is no part {', '.join(sorted(strange))}; there are {', '.join(ORDER)}")
    if args.divide < 1 or args.minutes <= 0:
        parser.error("--divide must be 1 or more, --minutes above 0")
    return args


def place(args: argparse.Namespace) -> Path:
    """Where the page goes. Exits where there is no such device."""
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: no CUDA device here; `--device cpu --divide 64` tries the script itself")
    if args.out:
        return args.out
    trial = args.device == "cpu" or args.divide > 1
    slug = "-".join(device_name(args.device).split())
    folder = Path("build/bench-gpu") if trial else Path(__file__).parent
    return folder / f"gpu_{slug}{f'_divided-by-{args.divide}' if trial else ''}_{date.today()}.md"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    (parts, lacking), setting = load_parts(args.modules), Setting(args.device, args.divide)
    if args.child:
        part = next(p for p in parts if p.letter == args.child)
        if args.device == "cpu" and "torch" in sys.modules:  # sizes of a trial: threads would only wait for each other
            sys.modules["torch"].set_num_threads(1)
        return work(part, setting, args.cases, Records(args.out), os.getppid())
    out = place(args)
    records = Records(out.with_suffix(".jsonl"))
    try:
        records.begin(setting, args.again)
    except ValueError as error:
        sys.exit(f"error: {error}")
    command: list[Any] = [sys.executable, __file__, "--device", args.device, "--divide", args.divide]
    command = [str(c) for c in (*command, "--modules", args.modules, "--out", records.path)]
    shown = " ".join(["python benchmarks/bench_gpu.py", *(sys.argv[1:] if argv is None else argv)])
    top, end = head(setting, shown), time.monotonic() + 60 * args.minutes
    try:
        for part in (p for p in parts if p.letter in args.only):
            left = end - time.monotonic()
            if left < LEAST:
                why = f"the {args.minutes:g} minutes of the whole run were over"
                records.add(part=part.letter, state="stopped", why=why)
                continue
            supervise(part, setting, records, min(args.limit or part.seconds, left), command)
            out.write_text(page(parts, setting, records, top, lacking) + "\n")  # whoever is killed next
    except KeyboardInterrupt:
        print("stopped; the same command goes on", flush=True)
        return 130
    finally:
        out.write_text(page(parts, setting, records, top, lacking) + "\n")
        print(f"written: {out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
