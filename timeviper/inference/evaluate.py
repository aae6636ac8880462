"""Held-out questions of a finished stage, answered by greedy decoding and scored beside three baselines.

blind: the same model with every frame replaced by mid-grey; pure_drop: the same schedule, but dropped tokens
are lost instead of transferred; chance: the right answer of another question of the same type.
Ranks share the questions; answers are kept as they come, so that what was stopped continues.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from timeviper.config.load import CONFIG, load_recipe
from timeviper.inference.eval_report import Report, folder_of, read_report, write_answers, write_report
from timeviper.inference.held_out import BLIND, PURE_DROP, WHOLE, Evaluation, Variant
from timeviper.inference.journal import Entry, Journal, digest_of
from timeviper.inference.metrics import Answered, chance, score
from timeviper.inference.ranks import Ranks
from timeviper.inference.work import dealt, keys, work
from timeviper.kernels import dispatch
from timeviper.weights.export import find_export, load_export, pick_device, pick_dtype
from timeviper.weights.lineage import read_lineage


def evaluate(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    quiet: bool = False,
    dtype: str | None = None,
    again: bool = False,
) -> Report:
    """Answer the held-out questions of a finished stage; write `eval.json` and `answers.jsonl` into its run folder, or,
    with overrides, into a folder of their own in `evals/` there.

    run: a run folder or an export. overrides: settings of the evaluation that differ from the stage's recipe, as
    `key=value`. quiet: without progress on stderr. dtype: as in `load`.

    Under torchrun the ranks share the questions, and each returns the whole report. Answers are kept as they come: what
    was stopped continues with what is missing, unless `again` is given.

    Raises FileNotFoundError when there is no export, ValueError for unusable data, ConnectionError if a rank is gone.
    """
    export, ranks, device = find_export(run), Ranks(), pick_device()
    model, recipe, tokenizer = load_export(export, overrides, device=device, dtype=dtype)
    dispatch.configure(**vars(recipe.model.kernel))
    evaluation = Evaluation(model, recipe, tokenizer)
    computed = str(pick_dtype(recipe, device, dtype)).removeprefix("torch.")
    journal = Journal(folder_of(export), digest_of(export, recipe, computed), ranks.rank)
    with ranks.together():
        entries = answered(evaluation, journal, ranks, again=again, quiet=quiet)
    report, answers = _report(evaluation, export, entries, overrides, computed)
    if ranks.rank == 0:
        report = replace(report, answers=write_answers(export, answers, overrides))
        write_report(export, report)
        journal.end()
    return report


def answered(
    evaluation: Evaluation, journal: Journal, ranks: Ranks, *, again: bool = False, quiet: bool = False
) -> list[Entry]:
    """What becomes of every question under every variant; ranks that are `together` share those that the journal lacks.

    Raises ConnectionError if a rank is gone.
    """
    there = ranks.from_first(lambda: _begin(evaluation, journal, again, quiet))
    try:
        return [*there, *ranks.from_all(_share(evaluation, journal, there, ranks, quiet or ranks.rank > 0))]
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}. What ended it stands in its own output. All answers so far are kept in {journal.folder}: "
            "the same command goes on from there"
        ) from error


def finished(run: str | Path, overrides: Sequence[str] = (), dtype: str | None = None) -> Report | None:
    """The report of exactly this evaluation; None if there is none, or if answering anew was stopped on the way."""
    report, export = read_report(run, overrides, dtype), find_export(run)
    if report is None:
        return None
    recipe = load_recipe(export / CONFIG, overrides, to_train=False)
    computed = str(pick_dtype(recipe, pick_device(), dtype)).removeprefix("torch.")
    return None if Journal(folder_of(export), digest_of(export, recipe, computed)).is_begun() else report


# What an evaluation depends on beside the weights.
MATTERS = ("eval.", "data.val.", "data.frames.", "chat.", "model.")


def changes_of(run: str | Path, overrides: Sequence[str]) -> list[str]:
    """Which of the overrides of a recipe change the evaluation of the run that it made: those that it was not trained
    with."""
    config = find_export(run) / CONFIG
    if not config.is_file():
        return []
    trained = load_recipe(config, to_train=False)
    asked = [word for word in overrides if word.startswith(MATTERS)]
    return [word for word in asked if load_recipe(config, [word], to_train=False) != trained]


def _begin(evaluation: Evaluation, journal: Journal, again: bool, quiet: bool) -> list[Entry]:
    """The entries of an earlier start that are still of use."""
    places = {(v.name, key, sample) for v in evaluation.variants for key, sample in evaluation.samples.items()}
    there = [entry for entry in journal.begin(again) if entry.place in places]
    if there and not quiet:
        print(f"continues: {len(there):,} of {len(places):,} answers are there", file=sys.stderr, flush=True)
    return there


def _share(evaluation: Evaluation, journal: Journal, there: Sequence[Entry], ranks: Ranks, quiet: bool) -> list[Entry]:
    """Answer this rank's share of what is missing."""
    known = {(entry.variant, entry.answered.key) for entry in there}
    tasks = [
        (variant, plan)
        for variant in evaluation.variants
        for plan in evaluation.plans
        if any((variant.name, key) not in known for key in keys(plan))
    ]
    mine = dealt(tasks, [work(plan) for _, plan in tasks], ranks.rank, ranks.world)
    new: list[Entry] = []
    for variant in evaluation.variants:
        if plans := [plan for its, plan in mine if its is variant]:
            for part in evaluation.entries(variant, plans, quiet=quiet):
                part = [entry for entry in part if (entry.variant, entry.answered.key) not in known]
                journal.add(part)
                new += part
    return new


def _report(
    evaluation: Evaluation, export: Path, entries: Sequence[Entry], overrides: Sequence[str], dtype: str
) -> tuple[Report, list[Answered]]:
    found = {(entry.variant, entry.answered.key): entry for entry in entries}

    def of(variant: Variant) -> list[Answered]:
        rows = (found[variant.name, key] for key in evaluation.samples)
        return [entry.answered for entry in rows if not entry.reason]

    ours, lineage = of(WHOLE), read_lineage(export)
    skipped = {entry.answered.key: entry.reason for entry in entries if entry.reason}
    report = Report(
        scores=score(ours),
        blind=score(of(BLIND)),
        chance=chance(ours),
        pure_drop=score(of(PURE_DROP)) if PURE_DROP in evaluation.variants else None,
        n={"overall": len(ours)} | dict(sorted(Counter(a.type for a in ours).items())),
        skipped=[f"{key}: {skipped[key]}" for key in evaluation.samples if key in skipped],
        checkpoint=f"{export}@{lineage['step']}",
        weights=lineage.get("weights"),
        recipe=evaluation.recipe.name,
        overrides=list(overrides),
        answers=None,
        dtype=dtype,
    )
    return report, ours
