"""`timeviper bench run`: a set's questions put to a run, into a capsule, by any number of ranks, resumed by key."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from timeviper.benchmarking.asking import Asker, Way
from timeviper.benchmarking.capsule import BLIND, Capsule, read_capsule, watched_key
from timeviper.benchmarking.capsule_write import Part, begin, end
from timeviper.benchmarking.held_out_set import NAME as HELD_OUT
from timeviper.benchmarking.held_out_set import load_held_out
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.prompt_file import read_prompt
from timeviper.benchmarking.protocol import protocol_of
from timeviper.benchmarking.registry import Loaded, load_set
from timeviper.benchmarking.subtitles import RULES
from timeviper.config import Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.console import ProgressLine
from timeviper.errors import ConfigError, Problem, one_of
from timeviper.inference.ask import load
from timeviper.inference.ranks import Ranks
from timeviper.inference.work import dealt
from timeviper.training.lock import run_lock
from timeviper.weights.export import check_export, find_export, pick_device, pick_dtype
from timeviper.weights.lineage import read_lineage

QUESTION_COST = 8  # frames that a question costs about as much as, beside its video


@dataclass(frozen=True)
class Wanted:
    """What is asked of what, as typed."""

    set: str
    run: Path
    annotations: Path | None = None
    videos: Sequence[Path] = ()
    names: Path | None = None
    frames: str = "run"
    form: str = "official"
    prompt: Path | None = None
    """A file with a prompt (`prompt_file`), in place of `form`."""
    subtitles: str = "none"
    out: Path | None = None
    limit: int = 0
    blind: bool = False
    prefill: str = "video"
    max_new_tokens: int | None = None
    dtype: str | None = None
    overrides: tuple[str, ...] = ()


def bench_run(wanted: Wanted, *, quiet: bool = False) -> Capsule:
    """The capsule with all replies, of this start and those before. Under torchrun the ranks share the videos.

    Raises ConfigError for options that are none, ValueError for annotations or a capsule that do not fit,
    FileNotFoundError without an export, Held while another run fills the capsule, ConnectionError if a rank is gone.
    """
    export, ranks = find_export(wanted.run), Ranks()
    check_export(export)
    recipe = load_recipe(export / CONFIG, list(wanted.overrides), to_train=False)
    loaded = _loaded(wanted, recipe)
    way, depends = _way(wanted, loaded, recipe, export)
    items = loaded.items[: wanted.limit or None]
    folder = wanted.out or default_folder(wanted, depends)
    shown = [way.form.lines(item.options) for item in items]
    hint = "let this run write elsewhere (--out)"
    with ranks.together(), run_lock(folder, hint, "answering"):
        first = ranks.rank == 0
        there = ranks.from_first(lambda: _there(begin(folder, depends, items, shown), wanted.blind, quiet))
        tasks = _tasks(items, there[1], wanted.blind)
        mine = dealt(tasks, [_work(way, t) for t in tasks], ranks.rank, ranks.world)
        if mine:
            model = load(wanted.run, overrides=list(wanted.overrides), dtype=wanted.dtype)
            _answer(Asker(model, way), Part(folder, there[0], ranks.rank), mine, quiet or not first)
        try:
            ranks.from_all([ranks.rank])
        except ConnectionError as error:
            kept = f"All answers so far are kept in {folder}: the same command goes on from there"
            raise ConnectionError(f"{error}. What ended it stands in its own output. {kept}") from error
        # The first rank joins the parts and removes them: nobody reads the capsule meanwhile.
        ended: list[Capsule] = []
        ranks.from_first(lambda: ended.append(end(folder)))
        return ended[0] if ended else read_capsule(folder)


def default_folder(wanted: Wanted, depends: dict[str, Any]) -> Path:
    """RUN/bench/SET.FRAMES.FORM, with what else is in a score's name."""
    words = [wanted.set, str(depends["frames"]["protocol"]).replace(":", "-"), depends["template"]["form"]]
    words += [f"subtitles-{wanted.subtitles}"] if wanted.subtitles != "none" else []
    words += [f"first-{wanted.limit}"] if wanted.limit else []
    run = find_export(wanted.run)
    return (run.parent if run.name == "export" else run) / "bench" / ".".join(words)


def _loaded(wanted: Wanted, recipe: Recipe) -> Loaded:
    if wanted.set == HELD_OUT:
        return load_held_out(recipe)
    if wanted.annotations is None:
        message = f"the annotation file of {wanted.set}, or the folder that has it, as it is downloaded."
        raise ConfigError("bench run", [Problem("--annotations", None, message)])
    return load_set(wanted.set, wanted.annotations, list(wanted.videos) or None, wanted.names)


def _way(wanted: Wanted, loaded: Loaded, recipe: Recipe, export: Path) -> tuple[Way, dict[str, Any]]:
    """How it is asked, and all that the answers depend on."""
    problems = []
    if wanted.prompt and wanted.form != "official":
        problems.append(Problem("--form", wanted.form, "and --prompt are two prompts: give one of them."))
    if wanted.form not in loaded.set.forms:
        allowed = f"{loaded.set.title} has {one_of(loaded.set.forms)}."
        problems.append(Problem("--form", wanted.form, allowed))
    if wanted.subtitles not in RULES:
        problems.append(Problem("--subtitles", wanted.subtitles, f"is one of {one_of(RULES)}."))
    if wanted.prefill not in ("video", "question"):
        problems.append(Problem("--prefill", wanted.prefill, "is video or question."))
    if problems:
        raise ConfigError("bench run", problems)
    form = read_prompt(wanted.prompt, loaded.set.task) if wanted.prompt else loaded.set.forms[wanted.form]
    called = f"prompt-{wanted.prompt.stem}" if wanted.prompt else wanted.form
    protocol = protocol_of(wanted.frames, recipe.data.frames)
    longest = wanted.max_new_tokens or form.max_new_tokens
    prefill: Literal["video", "question"] = "video" if wanted.prefill == "video" else "question"
    way = Way(form, protocol, wanted.subtitles, longest, prefill, tuple(loaded.files))
    device, lineage = pick_device(), read_lineage(export)
    dtype = str(pick_dtype(recipe, device, wanted.dtype)).removeprefix("torch.")
    depends = {
        "set": {
            "name": loaded.set.name,
            "title": loaded.set.title,
            "annotations": loaded.digest,
            "files": [path.name for path in loaded.files],
            "limit": wanted.limit,
            "policies": {name: asdict(policy) for name, policy in loaded.set.policies.items()},
        },
        "model": {
            "path": str(export),
            "weights": lineage.get("weights"),
            "step": lineage["step"],
            "recipe": recipe.name,
            "overrides": sorted(wanted.overrides),
            "dtype": dtype,
        },
        "frames": protocol.as_dict(),
        "subtitles": {"rule": wanted.subtitles},
        "template": {"form": called, **asdict(form), "time": recipe.chat.time},
        "decoding": {"greedy": True, "max_new_tokens": longest, "prefill": wanted.prefill},
        "seed": recipe.seed,
        "hardware": {"device": _device(device), "torch": torch.__version__, "machine": platform.machine()},
    }
    return way, depends


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _there(capsule: Capsule, blind: bool, quiet: bool) -> tuple[str, set[tuple[str, str]]]:
    """Its id, and what needs not be asked again: everything with a reply."""
    known = {place for place, reply in capsule.replies.items() if not reply.error}
    if known and not quiet:
        total = len(capsule.items) * (1 + blind)
        print(f"continues: {len(known):,} of {total:,} answers are there", file=sys.stderr, flush=True)
    return capsule.header["id"], known


Task = tuple[str, list[Item]]
"""A variant, and questions about one video or one part of it."""


def _tasks(items: Sequence[Item], known: set[tuple[str, str]], blind: bool) -> list[Task]:
    found: dict[tuple[str, str, str], list[Item]] = {}
    for variant in ("", *([BLIND] if blind else [])):
        for item in items:
            if (variant, item.key) not in known:
                found.setdefault((variant, item.video.file, watched_key(item)), []).append(item)
    return [(variant, asked) for (variant, _, _), asked in found.items()]


def _work(way: Way, task: Task) -> float:
    return way.protocol.expected(task[1][0].duration) + QUESTION_COST * len(task[1])


def _answer(asker: Asker, part: Part, tasks: Sequence[Task], quiet: bool) -> None:
    total, done = sum(len(items) for _, items in tasks), 0
    with nullcontext() if quiet else ProgressLine(sys.stderr) as line:
        for variant, items in tasks:
            replies, shown = asker.ask(items, variant)
            part.add(replies, shown)
            done += len(items)
            if line is not None:
                line.count(done, total, f"questions{', blind' if variant else ''}", items[0].video.name)
