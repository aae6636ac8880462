"""The script for one GPU, run on a CPU: every part with tiny sizes, and what it does when a part goes wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import bench_gpu
import bench_gpu_kernels
import bench_gpu_models
import bench_gpu_steps
import pytest
import torch
from bench_gpu_measure import Peak, largest_error, preset, random_model, timed
from bench_gpu_ops import OPS
from bench_gpu_page import Case, Records, Row, Setting, table
from tree import ROOT

from timeviper.kernels import dispatch
from timeviper.model.layers import RMSNorm
from timeviper.model.mamba2 import Scan
from timeviper.model.viper import TimeViper

TINY = Setting("cpu", 1024)
PARTS = {p.letter: p for m in (bench_gpu_kernels, bench_gpu_models, bench_gpu_steps) for p in m.PARTS}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every run once: what is timed here interests nobody."""
    for module in (bench_gpu_kernels, bench_gpu_models):
        monkeypatch.setattr(module, "timed", lambda run, device, *_, **__: timed(run, device, warm=False))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cases(letter: str, *words: str) -> list[Case]:
    """Those of a part whose names hold one of the words; none: all."""
    return [c for c in PARTS[letter].cases(TINY) if not words or any(word in c.key for word in words)]


def rows(letter: str, *words: str) -> list[Row]:
    found = [row for case in cases(letter, *words) for row in case.rows()]
    table(PARTS[letter].columns, found)  # every column known, every number fit for its format
    numbers = [v for row in found for v in row.values() if isinstance(v, float)]
    assert numbers or not found
    assert all(map(isfinite, numbers))
    return found


# ---- the parts ------------------------------------------------------------------------------------------


def test_all_parts_are_there_and_their_cases_have_names_of_their_own() -> None:
    parts, lacking = bench_gpu.load_parts("bench_gpu_kernels,bench_gpu_models,bench_gpu_steps")
    assert not lacking
    assert "".join(p.letter for p in parts) == bench_gpu.ORDER
    for part in parts:
        for setting in (Setting(), TINY):
            keys = [case.key for case in part.cases(setting)]
            assert len(set(keys)) == len(keys) > 0


def test_full_size_inputs_are_the_strided_views_that_overflow() -> None:
    cfg = preset("nano9b", Setting()).decoder
    ssd, conv, norm = (OPS[name].make(cfg, 8, "meta") for name in ("ssd", "conv1d", "gated norm"))
    assert [ssd[name].stride(0) for name in ("x", "dt", "B", "C")] == [12_288, 22_656, 12_288, 12_288]
    assert conv["x"].stride(0) == norm["z"].stride(0) == 22_656
    assert [L * 22_656 < 2**31 for L in bench_gpu_kernels.LONG[:2]] == [True, False]
    assert bench_gpu_kernels.LONG[2] * 12_288 < 2**31 < bench_gpu_kernels.LONG[3] * 12_288


def test_kernels_without_a_vendor_say_why_and_keep_the_torch_form() -> None:
    found = rows("a", "91 tokens")[:8]
    assert [row["form"] for row in found] == ["torch", "vendor"] * 4
    assert all(row["last rows off float64"] < 0.01 for row in found[::2])
    assert all("needs a CUDA device" in row["note"] and "Install" not in row["note"] for row in found[1::2])


@pytest.mark.parametrize("wrong", [False, True])
def test_a_vendor_form_is_compared_with_the_torch_form(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """With the definitions in the vendor's place; wrong: with every input read one token late."""

    class Standing:
        FORMS = dispatch.FORMS

        @staticmethod
        @contextmanager
        def use(**forms: str) -> Iterator[None]:
            Standing.vendor = "vendor" in forms.values()
            with dispatch.use(**{op: "reference" if form == "vendor" else form for op, form in forms.items()}):
                yield

    real = bench_gpu_kernels.gradients

    def read(op: Any, inputs: Any, lengths: Any, weight: Any) -> Any:
        y, grads = real(op, inputs, lengths, weight)
        return (y.roll(1, 0), {n: g.roll(1, 0) for n, g in grads.items()}) if wrong and Standing.vendor else (y, grads)

    monkeypatch.setattr(bench_gpu_kernels, "dispatch", Standing)
    monkeypatch.setattr(bench_gpu_kernels, "gradients", read)
    found = [row for row in rows("a", "91 tokens")[:8] if row["form"] == "vendor"]
    assert len(found) == 4
    for row in found:
        errors = row["outputs off"], row["gradients off"], row["last rows off float64"]
        assert min(errors) > 0.3 if wrong else max(errors) < 0.02, row


def test_errors_of_every_operation_and_form() -> None:
    found = rows("b")
    assert len(found) == 3 * len(OPS)
    for row in found:
        assert ("note" in row) == (row["form"] == "vendor")
        assert "note" in row or max(row["outputs"], row["gradients"]) < 0.02, row


def test_prefill_ways_give_the_same_logits_and_the_schedule_counts() -> None:
    bench_gpu_models.video_model.cache_clear()
    found = rows("d", "10 frames", "tower")
    bench_gpu_models.video_model.cache_clear()
    assert [row["prefill"] for row in found[:2]] == ["tower alone", "tower and decoder"]
    assert {row["TransV"] for row in found} == {"published", "uniform", "off"}
    assert all(row["logits off"] < 0.05 for row in found if row["prefill"] == "whole")
    assert {row["left by TransV"] for row in found[2:]} == {"80, 16", ""}


def test_waits_and_lora_steps() -> None:
    waits = [row for case in cases("c") for row in case.rows()]
    table(PARTS["c"].columns, waits)
    assert waits[0]["where"] == "all"
    assert waits[0]["times"] == sum(row["times"] for row in waits[1:])
    (step,) = rows("e", "2 frames")[:1]
    assert step["second step s"] > 0 < step["planned GB"]


def test_waits_are_counted_by_the_line_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debug mode of a GPU warns; here a step that warns from inside of the model stands for it."""
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    class Warns:
        def __init__(self) -> None:
            self.norm = RMSNorm(8, 1e-5)

        def step(self, pack: object) -> None:
            for text in ("called a synchronizing CUDA operation", "something else"):
                x = torch.ones(2, 8).as_subclass(Loud)
                x.text = text
                self.norm(x)

    class Loud(torch.Tensor):
        text: str

        def to(self, *args: object, **_: object) -> torch.Tensor:
            warnings.warn(self.text, stacklevel=1)
            return self.as_subclass(torch.Tensor)

    found = list(bench_gpu_steps._warned(Warns(), None))  # pyright: ignore[reportArgumentType]
    assert [row["times"] for row in found] == [1, 1]
    assert found[1]["where"].startswith("kernels/norm.py:")
    assert all(row["times"] > 0 for row in bench_gpu_steps._profiled(Warns(), None))  # pyright: ignore[reportArgumentType]


def test_decode_stands_beside_a_control_of_equal_size() -> None:
    found = rows("f")
    assert [(row["decoder"], row["sequences"]) for row in found[::2]] == [("nano9b", 1), ("transformer control", 1)]
    ours, theirs = (
        bench_gpu_models.size_of(c.decoder) for c in (preset("nano9b", Setting()), bench_gpu_models.control(Setting()))
    )
    assert abs(theirs / ours - 1) < 0.02


def test_a_random_model_is_narrow_but_for_what_stays_wide() -> None:
    model = random_model(lambda: TimeViper(preset("nano9b", TINY)), "cpu")
    wide = {p for m in model.modules() if isinstance(m, (Scan, RMSNorm)) for p in m.parameters()}
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if p in wide else torch.bfloat16), name
        assert bool(torch.isfinite(p).all()), name


def test_errors_see_what_is_no_number_and_peaks_see_memory() -> None:
    true = torch.randn(10_000, 3)
    bad = true.clone()
    bad[9_999, 2] = torch.nan
    assert largest_error(true, true) == 0
    assert largest_error(bad, true) != largest_error(bad, true)
    assert bench_gpu_kernels.worst({"a": 0.5, "b": largest_error(bad, true), "c": 0.1})[0] == "b"
    with Peak("cpu") as peak:
        torch.ones(1 << 26).sum()
    assert 0.2 < peak.extra_gb < 0.4


# ---- what it outlives -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """(start it and read the page, what ran so far)"""
    monkeypatch.setenv("GPU_PARTS", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/support'}")
    out = tmp_path / "page.md"

    def start(*args: str) -> tuple[str, list[str]]:
        assert bench_gpu.main(["--device", "cpu", "--modules", "gpu_parts", "--out", str(out), *args]) == 0
        return out.read_text(), (tmp_path / "log").read_text().split()

    return start


def test_killed_hanging_and_failing_cases_leave_rows_and_a_second_start_does_the_rest(run) -> None:
    page, log = run("--limit", "3")
    assert log == ["one", "two", "three", "four", "five", "six", "last"]  # a, d, f: by worth
    assert "| two, first half | 2.50 |" in page  # what a killed process had measured
    assert "the process ended with SIGKILL" in page
    assert "ValueError: the first line" in page
    assert "Part D, six: the 3 s for it were over" in page
    assert "Part D, seven: not run, the 3 s for it were over" in page
    assert "A TRIAL OF THE SCRIPT" in page
    page, log = run("--limit", "20")
    assert log[7:] == ["two", "three", "three", "six", "six", "seven"]  # (those that now work count twice)
    assert "Nothing: every case has its figures." in page
    assert page.count("two, first half") == 1
    _, log = run()
    assert len(log) == 13  # all is there
    _, log = run("--again", "--only", "f")
    assert log[13:] == ["last"]


def test_a_part_that_was_not_asked_for_or_came_too_late_is_named(run) -> None:
    page, log = run("--only", "f")
    assert log == ["last"]
    assert "Part A, all: not run, it was not asked for" in page
    page, _ = run("--only", "a,d", "--minutes", "0.01")
    assert "Part A, all: not run, the 0.01 minutes of the whole run were over" in page


def test_a_package_that_is_missing_costs_its_own_parts_alone(run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    page, log = run("--modules", "needs_more,gpu_parts", "--only", "f")
    assert log == ["last"]
    assert "- all of needs_more.py: No module named 'a_package_that_nobody_has'" in page


def test_results_of_another_setting_are_not_mixed(run) -> None:
    run("--only", "f")
    with pytest.raises(SystemExit, match="--again"):
        run("--only", "f", "--divide", "2")


def test_a_line_cut_by_a_kill_costs_that_line_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.begin(Setting(), again=False)
    for state in ("started", "row", "done"):
        records.add(part="a", case="x", state=state, row={"figure": 1})
    with records.path.open("a") as file:
        file.write('{"part": "a", "ca')
    records.add(part="a", case="y", state="started")
    assert {key: one.state for key, one in records.found("a").items()} == {"x": "done", "y": "started"}
    assert json.loads(records.path.read_text().splitlines()[0])["setting"]["divide"] == 1


def test_a_table_leaves_empty_columns_out_and_refuses_unknown_ones() -> None:
    lines = table({"a": "", "b": ".1f", "c": "d"}, [{"a": "x | y", "b": 0.0}, {"a": "z", "note": "why"}])
    assert lines == ["| a | b | note |", "|---|---|---|", "| x / y | 0.0 |  |", "| z |  | why |"]
    with pytest.raises(KeyError, match="d"):
        table({"a": ""}, [{"d": 1}])


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu --divide 64"):
        bench_gpu.main([])
