"""What this machine has, and which implementation each operation will use on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import av
import torch
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from timeviper.console import console
from timeviper.kernels import dispatch
from timeviper.package import VERSION

PACKAGES = (
    "lightning",
    "transformers",
    "omegaconf",
    "webdataset",
    "torchmetrics",
    "av",
    "safetensors",
    "tokenizers",
)
GIB = 2**30


def machine() -> list[tuple[str, str]]:
    """Facts by name, as text."""
    facts = [
        ("timeviper", VERSION),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cpu", f"{_usable_cores()} of {os.cpu_count()} cores usable"),
        ("memory", _memory()),
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            capability = f"compute capability {gpu.major}.{gpu.minor}"
            facts.append((f"gpu {i}", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, {capability}"))
        facts.append(("cuda", str(torch.version.cuda)))
    else:
        built = (
            f"this torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "this torch is built for CPUs"
        )
        facts.append(("gpu", f"none ({built})"))
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat")
    )
    codecs = {name: name in av.codecs_available for name in ("h264", "hevc", "vp9", "av1", "libx264")}
    facts.append(("ffmpeg", f"in PyAV {av.__version__}: {libraries}"))
    facts.append(("codecs", ", ".join(name if there else f"no {name}" for name, there in codecs.items())))
    facts += [(name, _version(name)) for name in PACKAGES]
    return facts


def doctor() -> None:
    """Print the machine and the kernel table."""
    out = console()
    facts = Table("what", "found", title="this machine", title_justify="left")
    for row in machine():
        facts.add_row(*row)
    out.print(facts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    uses = Table("operation", "uses", "why", title=f"kernels on {device}, {dtype}", title_justify="left")
    rows = dispatch.report(device, dtype)
    for row in rows:
        uses.add_row(row.op, row.used, escape(row.why))
    for column in uses.columns:
        column.overflow = "fold"
    out.print(uses)
    out.print("vendors' kernels", style="italic")
    for row in rows:
        for vendor, state in row.vendors:
            said, _, to_install = state.partition(" Install it with: ")
            out.print(Text(f"{row.op}: {vendor.name}: {vendor.function}"))
            out.print(Padding(Text(f"here: {said}\nbrings: {vendor.brings}"), (0, 0, 0, 4)))
            commands = [vendor.install, vendor.uncompiled and f"{vendor.uncompiled}  # without nvcc"]
            for command in filter(None, commands if to_install else []):
                out.print(Text(f"    {command}"), soft_wrap=True)  # whole, so that it can be copied


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
