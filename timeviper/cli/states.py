"""`timeviper prefill`, and how `ask` and `chat` come by a video's state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from timeviper.cli.clock import clock, read_clock, read_size
from timeviper.cli.options import Dtype, MaxBytes, Overrides
from timeviper.errors import ConfigError, Problem, one_of

if TYPE_CHECKING:
    from timeviper.inference.answer import Answer
    from timeviper.inference.ask import LoadedModel
    from timeviper.inference.video_state import Tier, VideoState

TIERS = ("state", "features")


def prefill(
    run: Annotated[Path, typer.Option(help="A run folder or an export; with --plan also a recipe.")],
    overrides: Overrides = None,
    video: Annotated[Path | None, typer.Option(help="Any video or image file that PyAV opens.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the state goes.")] = None,
    tier: Annotated[str, typer.Option(help=f"{one_of(TIERS)}: smaller, but the first question reads it.")] = "state",
    max_bytes: MaxBytes = None,
    dtype: Dtype = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print how large states are, and what GPUs hold.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a video once and keep its state, for `ask --state` and `chat --state`; nothing is read twice."""
    if plan:
        from timeviper.planning.state_table import print_state_plan

        return print_state_plan(_recipe(run, overrides or []), json)
    if video is None or out is None:
        lacking = "--video" if video is None else "--out"
        raise ConfigError("prefill", [Problem(lacking, None, "say which video, and where its state goes (-o FILE).")])
    if tier not in TIERS:
        raise ConfigError("prefill", [Problem("--tier", tier, f"must be {one_of(TIERS)}.")])
    budget = None if max_bytes is None else read_size(max_bytes, "--max-bytes")
    from timeviper.inference.ask import load

    model = load(run, dtype=dtype, overrides=overrides or [])
    state = _there(model, video, out, tier)
    known = state is not None
    if state is None:
        state = model.watch(video, tier="features" if tier == "features" else "state", max_bytes=budget, progress=True)
        state.save(out)
    report(state, out, json, "is there already, of this video and model" if known else "")


def watch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file that grows, - for standard input, or a camera's address.")
    ],
    run: Annotated[Path, typer.Option(help="A run folder or an export.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the state goes, at every mark.")],
    overrides: Overrides = None,
    every: Annotated[str, typer.Option(metavar="TIME", help="Of the video, from a mark to the next.")] = "5:00",
    last: Annotated[str | None, typer.Option("--for", metavar="TIME", help="Of the video, then end.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds without anything new that end it.")] = 30.0,
    max_bytes: MaxBytes = None,
    dtype: Dtype = None,
) -> None:
    """Watch a video while it is made; ask meanwhile, or later up to a time: `ask --state FILE --until 37:00`.

    Frames are taken data.frames.fps a second, as many as the context and --max-bytes hold. Ctrl-C keeps what was seen.
    """
    from timeviper.cli.watching import follow

    times = {"every": read_clock(every, "--every"), "last": None if last is None else read_clock(last, "--for")}
    if not times["every"]:
        raise ConfigError("watch", [Problem("--every", every, "must be more than no time.")])
    budget = None if max_bytes is None else read_size(max_bytes, "--max-bytes")
    follow(source, run, out, overrides or [], **times, patience=patience, max_bytes=budget, dtype=dtype)


def report(state: VideoState, path: Path, as_json: bool, note: str = "") -> None:
    """What a state is, in a line or as JSON."""
    size = path.stat().st_size
    if as_json:
        from json import dumps

        facts = {"path": str(path), "tier": state.tier, "frames": state.frames, "seconds": state.seconds}
        facts |= {"tokens": state.tokens, "bytes": state.bytes, "file_bytes": size, "key": state.key.digest}
        print(dumps(facts, indent=2))
        return
    about = f"{state.frames:,} frames of {clock(state.seconds)}, {state.tokens:,} tokens, {size / 1e6:,.1f} MB"
    print(f"{path}{f' {note}' if note else ''}: {about} ({state.tier})")


def opened_state(
    run: Path | None,
    video: Path | None,
    state: Path,
    *,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    until: str | None = None,
) -> VideoState:
    """The state in a file; with a video, made and kept there if the file is not there yet.

    Where it cannot be kept, that is said on stderr, and the state is there all the same.
    """
    from timeviper.inference.ask import load, load_state

    seconds = None if until is None else read_clock(until, "--until")
    if video is None:
        return load_state(state, run, dtype=dtype, overrides=overrides, until=seconds)
    if run is None:
        raise ConfigError("a new state", [Problem("--run", None, "say which model is to watch the video.")])
    model = load(run, dtype=dtype, overrides=overrides)
    if state.is_file():
        return matching(load_state(state, model, until=seconds), video)
    made = model.watch(video, progress=True)
    try:
        made.save(state)
    except OSError as error:
        print(f"the state is not kept, the answer does not need it: {error}", file=sys.stderr)
    return made


def asked_about(
    run: Path | None,
    video: Path | None,
    state: Path | None,
    *,
    overrides: Sequence[str],
    dtype: str | None,
    until: str | None,
) -> tuple[LoadedModel, Callable[..., Answer]]:
    """The model, and what puts a question to a video or to its state."""
    from timeviper.inference.ask import load

    if state is not None:
        opened = opened_state(run, video, state, overrides=overrides, dtype=dtype, until=until)
        return opened.model, opened.ask
    lacking = [name for name, value in (("--run", run), ("--video", video)) if value is None]
    if until is not None:
        raise ConfigError("ask", [Problem("--until", until, "is for the state of a video being watched (--state).")])
    if run is None or video is None:
        says = "a question is about a video of a run (--run, --video), or about a state (--state)."
        raise ConfigError("ask", [Problem(name, None, says) for name in lacking])
    model = load(run, dtype=dtype, overrides=overrides)
    return model, partial(model.ask, video=video, progress=True)


def matching(state: VideoState, video: Path) -> VideoState:
    """StateError where a state is of another video, or of other frames."""
    from timeviper.inference.state_key import content_of, sampler_of

    content, sampler = content_of(video, None), sampler_of(video, state.model.recipe.data.frames)
    state.key.check(state.key.with_(content=content, sampler=sampler), state.where)
    return state


def _there(model: LoadedModel, video: Path, out: Path, tier: Tier | str) -> VideoState | None:
    """A state that is kept already, if it is the one wanted."""
    from timeviper.inference.ask import load_state
    from timeviper.inference.state_key import StateError

    if not (out.is_file() and video.is_file()):
        return None
    try:
        state = load_state(out, model)
        state.check(state.opening((), ""))
        return matching(state, video) if state.tier == tier else None
    except StateError:
        return None


def _recipe(run: Path, overrides: Sequence[str]):
    from timeviper.config.load import CONFIG, load_recipe
    from timeviper.config.shipped import means_recipe
    from timeviper.weights.lineage import find_export

    if means_recipe(run):
        return load_recipe(run, overrides, to_train=False)
    return load_recipe(find_export(run) / CONFIG, overrides, to_train=False)
