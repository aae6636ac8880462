"""`timeviper shards check`: the doctor's report for people, and the mended copies."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from timeviper.cli.write_shards import part_of
from timeviper.config import FramesConfig
from timeviper.config.load import load_recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.checks.forecast import sentence
from timeviper.datamodules.checks.shards import PROBLEMS, CheckConfig, Report, check_shards

SHOWN = 5  # notes of a kind that are listed; the JSON has them all
BYTES_A_TOKEN = 4  # of English text; what max_tokens of a recipe allow


def check(
    folder: Path,
    config: CheckConfig,
    workers: int,
    json_file: Path | None = None,
    fix: Path | None = None,
    state: Path | None = None,
    part: str = "1/1",
) -> bool:
    """Check `folder` (a part of it), print and write the report, write mended copies to `fix`.

    Returns whether no problem is left. Raises ValueError and OSError for what keeps it from being done at all.
    `state`: where what is done is remembered.
    """
    number, parts = part_of(part)
    if parts > 1 and not state:
        raise ValueError(f"--part {part} needs --state DIR: a folder of all parts, which remembers what each has found")
    if parts > 1 and fix:
        raise ValueError(
            f"--fix mends what a whole check has found: check all parts, then run it without --part {part}"
        )
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    report = _check(folder, config, workers, state, (number, parts))
    if json_file:
        json_file.write_text(report.to_json() + "\n", encoding="utf-8")
    _show(report)
    if fix is None:
        return not report.problems
    from timeviper.datamodules.checks.fix import DROPPED, fix_shards

    with ProgressLine(sys.stderr, stays=False) as line:
        dropped = fix_shards(
            folder, fix, report, config, workers, lambda n, shard: line(f"{n:,} samples mended, now {shard}")
        )
    print(f"{len({(p.shard, p.key) for p in dropped})} samples left out, with reasons: {fix / DROPPED}")
    if len({p.key for p in dropped}) and not any(fix.rglob("*.tar")):
        raise ValueError(f"no sample of {folder} can be mended; see {fix / DROPPED}")
    after = _check(fix, config, workers)
    _show(after)
    print(f"before: {sentence(report.forecast)}\nafter:  {sentence(after.forecast)}")
    return not after.problems


def config_of(
    recipe: Path | None, fps: float | None, max_frames: int | None, max_text: int | None, accept: Collection[str]
) -> CheckConfig:
    """What to check for: a recipe's most demanding phase, or one frame a second, changed by what is not None."""
    config = CheckConfig()
    if unknown := sorted(set(accept) - PROBLEMS.keys()):
        raise ValueError(f"--accept {unknown[0]}: no such kind of problem; there are {', '.join(PROBLEMS)}")
    if recipe:
        checked = load_recipe(recipe)
        phases = checked.train.phases.values()
        frames = replace(
            checked.data.frames,
            fps=max([checked.data.frames.fps, *(p.fps for p in phases if p.fps)]),
            max_frames=max([checked.data.frames.max_frames, *(p.max_frames for p in phases if p.max_frames)]),
        )
        sizes = [tower.image_size for tower in checked.model.towers.values()]
        config = CheckConfig(frames, max(sizes), BYTES_A_TOKEN * checked.model.decoder.max_tokens)
    frames = FramesConfig(
        config.frames.fps if fps is None else fps,
        config.frames.min_frames,
        config.frames.max_frames if max_frames is None else max_frames,
    )
    max_text = config.max_text if max_text is None else max_text
    return replace(config, frames=frames, max_text=max_text, accept=frozenset(accept))


def _check(
    folder: Path, config: CheckConfig, workers: int, state: Path | None = None, part: tuple[int, int] = (1, 1)
) -> Report:
    with ProgressLine(sys.stderr, stays=False) as line:

        def told(samples: int, now: str) -> None:
            line(f"{samples:,} samples checked, now {now}")

        return check_shards(folder, config, workers, told, state, part)


def _show(report: Report) -> None:
    for problem in report.problems:
        print(f"{problem.shard}  {problem.key or '-'}  {problem.kind}: {problem.detail}")
    shown: Counter[str] = Counter()
    for note in report.notes:
        shown[note.kind] += 1
        if shown[note.kind] <= SHOWN:
            print(f"note: {note.shard}  {note.key or '-'}  {note.kind}: {note.detail}")
    for kind, count in shown.items():
        if count > SHOWN:
            print(f"note: {count - SHOWN} more of kind {kind}")
    print(
        f"{report.shards} shards, {report.samples} samples, {len(report.problems)} problems, {len(report.notes)} notes"
    )
    print(sentence(report.forecast))
    if report.waiting:
        print(f"{report.waiting} shards of other parts are not checked yet; the part that ends last compares all media")
