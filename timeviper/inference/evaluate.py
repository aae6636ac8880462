"""Held-out questions, answered by greedy decoding and scored beside three baselines.

blind: the same model with every frame replaced by mid-grey; pure_drop: the same schedule, but dropped tokens
are lost instead of transferred; chance: the right answer of another question of the same type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from timeviper.config import Recipe
from timeviper.datamodules.build import class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.loader import PlanSampler, make_loader, plan_bytes
from timeviper.datamodules.plan import held_out
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.features.check import check_features
from timeviper.inference.generate import generate_pack
from timeviper.inference.metrics import Answered, chance, score
from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import find_export, is_export, load_export, pick_device
from timeviper.weights.lineage import LINEAGE, question_digest, read_lineage

REPORT, ANSWERS = "eval.json", "answers.jsonl"
GREY = 128  # what the towers' normalisation maps to zero


class Evaluation:
    """One model on one held-out set; each variant answers all questions."""

    def __init__(self, model: TimeViper, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.model, self.recipe, self.tokenizer = model, recipe, tokenizer
        sources = load_sources(recipe.data.val)
        if not sources:
            raise ValueError("data.val names no held-out source; add one, such as data.val.mine.shards=FOLDER")
        check_features(recipe, {}, sources, model.towers)
        self.plans = held_out(sources, recipe.data, cost_model(recipe, tokenizer), recipe.eval.samples, 1)
        cache = BlockCache.of(recipe.data)
        classes = class_datasets(recipe.data.val)
        self.reader = PackReader(tokenizer, pack_format(recipe), classes, prompt_only=True, cache=cache)
        units = (item.unit for plan in self.plans for pack in plan.packs for item in pack)
        self.samples = {unit.key: question_digest(unit) for unit in units}
        self.skipped: list[str] = []

    def answers(self, name: str, *, blind: bool = False, transfer: bool = True, quiet: bool = False) -> list[Answered]:
        """Greedy answers to every held-out question, in order."""
        data = self.recipe.data
        loader = make_loader(
            self.reader,
            PlanSampler(lambda: self.plans, 0, 1),
            data.workers,
            data.prefetch,
            False,
            step_bytes=max(plan_bytes(plan, self.reader.form.image_size) for plan in self.plans),
            prefetch_gb=data.prefetch_gb,
        )
        found: list[Answered] = []
        with torch.inference_mode(), self.model.decoder.transfer(transfer):
            for batch in track(loader, name, total=len(self.plans), disable=quiet, console=Console(stderr=True)):
                self.skipped += [f"{s.key}: {s.reason}" for s in batch.skipped] if name == "TimeViper" else []
                for pack in batch.packs:
                    found += self._answer(pack, blind)
        return found

    def _answer(self, pack: Pack, blind: bool) -> list[Answered]:
        if not pack.keys:
            return []
        if blind:
            grey = pack.frames.new_full((pack.num_frames, *pack.frames.shape[1:]), GREY)
            pack = replace(pack, frames=grey, features={}, from_features=[])
        written = generate_pack(
            self.model,
            pack.to(next(self.model.parameters()).device),
            max_new_tokens=self.recipe.eval.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )
        texts = [self.tokenizer.decode(ids.tolist()) for ids in written]
        prompts = zip(pack.ids.split(pack.lengths), pack.kind.split(pack.lengths))
        asked = [self.tokenizer.decode(ids[kind != Kind.VISION].tolist()) for ids, kind in prompts]
        samples = [self.samples[key] for key in pack.keys]
        return [Answered(*row) for row in zip(pack.keys, pack.types, texts, pack.answers, asked, samples)]


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> dict:
    """Answer the held-out questions of a finished stage; write `eval.json` and `answers.jsonl` into its run folder.

    Raises FileNotFoundError when there is no export, ValueError for unusable data.
    """
    export = find_export(run)
    model, recipe, tokenizer = load_export(export, overrides)
    dispatch.configure(**vars(recipe.model.kernel))
    evaluation = Evaluation(model.to(pick_device()), recipe, tokenizer)
    ours = evaluation.answers("TimeViper", quiet=quiet)
    report = score(ours)
    report["blind"] = score(evaluation.answers("blind", blind=True, quiet=quiet))
    report["chance"] = chance(ours)
    has_transfer = any(stage.transfer for stage in recipe.model.transv.stages.values())
    report["pure_drop"] = score(evaluation.answers("pure drop", transfer=False, quiet=quiet)) if has_transfer else None
    counts = {t: sum(a.type == t for a in ours) for t in sorted({a.type for a in ours})}
    report["n"] = {"overall": len(ours), **counts}
    report["skipped"] = evaluation.skipped
    lineage = read_lineage(export)
    report["checkpoint"] = f"{export}@{lineage['step']}"
    report["weights"] = lineage.get("weights")
    report["recipe"] = recipe.name
    report["overrides"] = list(overrides)
    rows = "".join(json.dumps({**asdict(a), "correct": a.correct, "iou": a.iou}) + "\n" for a in ours).encode()
    report["answers"] = sha256(rows).hexdigest()[:16]
    folder = _folder(export)
    (folder / ANSWERS).write_bytes(rows)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def read_report(run: str | Path, overrides: Sequence[str] = ()) -> dict | None:
    """The `eval.json` of exactly this export and these overrides; None if there is none.

    DamagedReportError names the file.
    """
    export = find_export(run)
    path = _folder(export) / REPORT
    if not path.is_file() or not is_export(export):
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        _ = report["accuracy"]["overall"], report["n"]["overall"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedReportError(path, run, f"is no report of an evaluation ({error!r})") from error
    weights = read_lineage(export).get("weights")
    by_time = path.stat().st_mtime >= (export / LINEAGE).stat().st_mtime  # all there is to go by in old exports
    fresh = report.get("weights") == weights if weights else by_time
    return report if fresh and report.get("overrides") == list(overrides) else None


def read_answers(run: str | Path, report: dict) -> list[Answered] | None:
    """The answers behind a report of `read_report`; None if an earlier version wrote them, without digests.

    DamagedReportError names file and line, or says that they are not those of the report.
    """
    path = _folder(find_export(run)) / ANSWERS
    if "answers" not in report or not path.is_file():
        return None
    raw = path.read_bytes()
    names = [f.name for f in fields(Answered)]
    found = []
    for number, line in enumerate(raw.decode(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            answer = Answered(*(row[name] for name in names))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedReportError(path, run, f"line {number} is no answer ({error!r})") from error
        if not all(isinstance(value, str) for value in vars(answer).values()):
            raise DamagedReportError(path, run, f"line {number} is no answer (not all of {', '.join(names)} are texts)")
        found.append(answer)
    if sha256(raw).hexdigest()[:16] != report["answers"]:
        raise DamagedReportError(
            path, run, f"holds {len(found)} answers, but not those that {REPORT} beside it was made from"
        )
    return found


class DamagedReportError(ValueError):
    """A file of an evaluation that is not as it was written."""

    def __init__(self, path: Path, run: str | Path, what: str) -> None:
        super().__init__(f"{path} {what}; answer again: timeviper eval {run} --again")


def _folder(export: Path) -> Path:
    """Where the report of an export goes."""
    return export.parent if export.name == "export" else export


def print_table(report: dict) -> None:
    """Accuracy by question type, the model beside its baselines."""
    columns = {
        "TimeViper": report,
        "pure drop": report["pure_drop"],
        "blind": report["blind"],
        "chance": report["chance"],
    }
    columns = {name: c for name, c in columns.items() if c}
    table = Table(title=f"{report['recipe']}: held-out answers ({report['checkpoint']})")
    table.add_column("question")
    for name in ("n", *columns):
        table.add_column(name, justify="right")
    for kind in report["accuracy"]:
        row = [f"{c['accuracy'][kind]:.3f}" for c in columns.values()]
        table.add_row(kind, str(report["n"][kind]), *row, end_section=kind == "overall")
    if report["miou"] is not None:
        table.add_row("when: mean IoU", str(report["n"]["when"]), *(f"{c['miou']:.3f}" for c in columns.values()))
    Console(width=100).print(table)
