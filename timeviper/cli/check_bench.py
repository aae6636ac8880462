"""`timeviper bench check`: what was found out about a test set, for people."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from timeviper.benchmarking.check import Checked, check_set, compare_with
from timeviper.benchmarking.registry import SETS, load_set, set_named
from timeviper.console import ProgressLine, console, table
from timeviper.datamodules.checks.shards import find_shards

if TYPE_CHECKING:
    from timeviper.cli.bench import CheckPlace


def check_bench(
    name: str,
    place: CheckPlace,
    part: bool,
    against: Path | None,
    state: Path | None,
    workers: int,
    json_file: Path | None,
) -> bool:
    """Check, print, and write the report; whether there is no problem."""
    if against and not place.videos:
        raise ValueError("--against compares videos: say with --videos where those of the set are")
    if against:
        find_shards(against)  # a wrong folder is said now, not after all videos
    loaded = load_set(name, place.annotations, place.videos, place.names, place.precut)
    with ProgressLine(sys.stderr, stays=False) as line:
        checked = check_set(
            loaded, part=part, workers=workers, progress=lambda n, total, video: line.count(n, total, "videos", video)
        )
        if against:
            compare_with(
                checked, loaded.items, against, workers, lambda n, where: line(f"{n:,} media seen, now {where}"), state
            )
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(asdict(checked), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _show(checked)
    return not checked.problems


def _show(checked: Checked) -> None:
    print(f"{checked.title}: {checked.items:,} items on {checked.videos:,} videos, sha256 {checked.digest[:16]}")
    if checked.counts:
        made = table("count", "published", "here")
        for one in checked.counts:
            made.add_row(
                one.what, f"{one.published:,}", f"{one.found:,}" + ("" if one.found == one.published else " *")
            )
        console().print(made)
    if checked.lengths:
        print(f"videos decoded: {len(checked.lengths):,}, {sum(checked.lengths.values()) / 3600:,.2f} hours")
    for pair in checked.overlap.found if checked.overlap else ():
        how = "has the bytes of" if pair.rms is None else f"looks like (they differ by {pair.rms:.1f} of 255)"
        print(f"{pair.shard}  {pair.key}  {pair.member} {how} {pair.media}")
    for note in checked.notes:
        print(f"note: {note}")
    for problem in checked.problems:
        print(f"PROBLEM: {problem}")
    print(f"{len(checked.problems)} problem{'s' * (len(checked.problems) != 1)}")


def show_sets() -> None:
    """All test sets, a row each."""
    made = table("set", "is", "videos", "questions", "prompts")
    made.columns[0].no_wrap = True
    for one in SETS.values():
        numbers = [f"{n:,}" if n else "" for n in (one.counts.videos, one.counts.questions)]
        made.add_row(one.name, one.title, *numbers, " ".join(one.forms))
    console().print(made)
    print("More of one: timeviper bench sets SET")


def show_set(name: str) -> None:
    """All that is known of a set. ValueError for another name."""
    one = set_named(name)
    counts = one.counts
    told = {"videos": counts.videos, "questions": counts.questions, "groups": counts.groups}
    lines = [
        f"{one.name}: {one.title}",
        *(f"{what}: {count:,}" for what, count in told.items() if count),
        *(f"{label}: {', '.join(f'{v} {n:,}' for v, n in values.items())}" for label, values in counts.by.items()),
        *(f"not to be mixed up with {what}: {count:,} questions" for what, count in counts.others.items()),
        f"download: {one.download}{' (terms are accepted first)' if one.gated else ''}",
        *([f"licence: {one.licence}"] if one.licence else []),
        *(f"known defect: {what}{f', {count} items' if count else ''}" for what, count in one.defects.items()),
        *(f"note: {remark}" for remark in one.remarks),
    ]
    for rule, policy in one.policies.items():
        means = f"mean over {policy.by}" if policy.by else f"mean of each {policy.average}"
        lines.append(f"rule {rule}: unread replies are {policy.unparsed}, {means}{', IoU >' if policy.strict else ''}")
    for form, prompt in one.forms.items():
        lines += [f"prompt {form} (at most {prompt.max_new_tokens} tokens):"]
        said = [prompt.system, *prompt.text.split("\n"), prompt.cue, prompt.prefix and f"reply begins: {prompt.prefix}"]
        lines += [f"    {line}" for line in said if line]
    for line in lines:
        console().print(Text(line))
