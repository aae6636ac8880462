"""Packages as one finds them: whole, without their compiled extension, broken, not there at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from timeviper.kernels import dispatch, vendors
from timeviper.kernels.vendors import Vendor

NEEDS_EXTENSION = "import extension_that_nobody_compiled\n"
HELPER = "def scale(x):\n    return 2 * x\n"
KERNEL = "from {package}.ops.helper import scale\n\n\ndef scan(x):\n    return scale(x)\n"

Make = Callable[..., Vendor]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A package with `ops/kernel.py` and `ops/helper.py`, and the vendor that describes it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def package(init: str, kernel: str = KERNEL, **options) -> Vendor:
        made.append(name := f"{tmp_path.name.replace('-', '_')}_pkg{len(made)}")
        ops = tmp_path / name / "ops"
        ops.mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(init)
        (ops / "__init__.py").write_text("")
        (ops / "helper.py").write_text(HELPER)
        (ops / "kernel.py").write_text(kernel.format(package=name))
        return Vendor(f"{name}.ops.kernel", "scan", "pip install it", "speed", **options)

    yield package
    for name in list(sys.modules):
        if name.partition(".")[0] in made:
            del sys.modules[name]


def traces(vendor: Vendor) -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == vendor.name]


def test_a_whole_package(make: Make) -> None:
    loaded = vendors.load(make("", uncompiled="pip install"))
    assert loaded.function is not None
    assert (loaded.function(3), loaded.problem) == (6, "")


def test_parts_of_a_package_whose_extension_is_missing(make: Make) -> None:
    vendor = make("import math\n" + NEEDS_EXTENSION, uncompiled="pip install")
    loaded = vendors.load(vendor)
    assert loaded.function is not None
    assert loaded.function(3) == 6
    assert "without the compiled extension" in loaded.problem
    assert "extension_that_nobody_compiled" in loaded.problem
    again = vendors.load(replace(vendor, function="scale"))  # another function of the same package
    assert again.function is not None


@pytest.mark.parametrize(
    ("init", "kernel", "options"),
    [
        (NEEDS_EXTENSION, KERNEL, {}),
        (NEEDS_EXTENSION, KERNEL + NEEDS_EXTENSION, {"uncompiled": "pip install"}),
        ("from . import ops\n" + NEEDS_EXTENSION, KERNEL, {}),
        ("raise OSError('undefined symbol')\n", "raise RuntimeError('no driver')\n", {"uncompiled": "pip install"}),
    ],
)
def test_what_cannot_be_imported_leaves_no_trace(make: Make, init: str, kernel: str, options: dict) -> None:
    vendor = make(init, kernel, **options)
    loaded = vendors.load(vendor)
    assert loaded.function is None
    assert f"import of {vendor.module} failed" in loaded.problem
    assert traces(vendor) == []


def test_a_package_that_is_not_there() -> None:
    loaded = vendors.load(Vendor("no_such_package.ops", "scan", "pip install it", "speed", uncompiled="pip install"))
    assert loaded.function is None
    assert "No module named 'no_such_package'" in loaded.problem


def test_the_first_that_runs_is_taken(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of preference; `doctor` names it and says what the others would bring."""
    broken, parts, whole = make(NEEDS_EXTENSION), make(NEEDS_EXTENSION, uncompiled="pip install parts"), make("")
    monkeypatch.setitem(dispatch.VENDORS, "ssd", (broken, parts, whole))
    meta = torch.empty(1, device="cuda") if torch.cuda.is_available() else None
    device = torch.device("cuda")
    assert dispatch.obstacle("ssd", device, torch.float32) == ""
    (row,) = [r for r in dispatch.report("cuda", torch.float32) if r.op == "ssd"]
    assert row.used == f"vendor: {parts.name}"
    states = [state for _, state in row.vendors]
    assert "missing: import of" in states[0]
    assert "Install it with: pip install it" in states[0]
    assert states[1].startswith("runs without the compiled extension")
    assert states[2] == "able to run, not needed"
    if meta is not None:
        assert dispatch.kernel("ssd", meta).function is vendors.load(parts).function


def test_torch_attends_where_flash_attn_is_missing() -> None:
    flash, own = dispatch.VENDORS["attention"]
    assert own.name == "torch.nn.attention"
    assert vendors.load(own).function is varlen_attn
    if vendors.load(flash).function is None and not torch.cuda.is_available():
        assert dispatch.obstacle("attention", torch.device("cuda"), torch.bfloat16) == ""
        (row,) = [r for r in dispatch.report("cuda") if r.op == "attention"]
        assert row.used == "vendor: torch.nn.attention"


def test_a_stand_in_has_the_name_of_a_vendor() -> None:
    with (
        pytest.raises(ValueError, match="no vendor has a function flash_attention"),
        dispatch.stand_in({"flash_attention": len}),
    ):
        pass
