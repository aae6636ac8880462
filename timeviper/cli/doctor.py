"""What this machine has, and which implementation each operation will use on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import av
import torch
from rich.markup import escape
from rich.table import Table

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
    vendors = Table("operation", "package", "here", "brings", title="vendors' kernels", title_justify="left")
    for row in dispatch.report(device, dtype):
        uses.add_row(row.op, row.used, escape(row.why))
        for vendor, state in row.vendors:
            vendors.add_row(row.op, f"{vendor.name}: {vendor.function}", escape(state), vendor.brings)
    for table in (uses, vendors):
        for column in table.columns:
            column.overflow = "fold"
        out.print(table)


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
