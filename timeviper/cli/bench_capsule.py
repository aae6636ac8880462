"""`timeviper bench run` and `bench rescore`: a test set's answers into a capsule, and all scores out of one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.bench import Names, Videos, bench
from timeviper.cli.shards import HELP, STOPPED

EDITED = 4
"""Exit code of scores whose answers are not as they were written."""

Meteor = Annotated[
    Path | None, typer.Option(metavar="JAR", help="meteor-1.5.jar, for METEOR and SODA_c of dense captions (Java).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, with every unread reply.")]


@bench.command("run", context_settings={**HELP, "ignore_unknown_options": True})
def bench_run(
    name: Annotated[str, typer.Argument(metavar="SET", help="One of docs/benchmarks.md, or held-out: the run's own.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or an export.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Its annotation file or folder, as it is downloaded.")
    ] = None,
    videos: Videos = None,
    names: Names = None,
    frames: Annotated[
        str,
        typer.Option(help="run, fps:F:N, uniform:N, first:F:N, linspace:N, vlmeval:N, longvideobench:N, mvbench:N."),
    ] = "run",
    form: Annotated[str, typer.Option(help="Prompt: official, lmms, or another of the set.")] = "official",
    prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt of your own in YAML, such as a paper's very words.")
    ] = None,
    subtitles: Annotated[str, typer.Option(help="none, shown (at the frames), vlmeval or all.")] = "none",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Capsule; RUN/bench/SET.FRAMES.FORM if not said.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many questions.")] = 0,
    blind: Annotated[
        bool, typer.Option("--blind", help="Also answer with every frame grey: the blind baseline.")
    ] = False,
    prefill: Annotated[
        str, typer.Option(help="video: one for all questions of a video; question: one each.")
    ] = "video",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; the prompt's own if not said.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute in float32 or bfloat16.")] = None,
    meteor: Meteor = None,
    as_json: Json = False,
) -> None:
    """Put a test set's questions to a run and score the answers. The same command continues what was stopped."""
    from timeviper.benchmarking.bench_run import Wanted
    from timeviper.benchmarking.bench_run import bench_run as answer

    wanted = Wanted(
        set=name,
        run=run,
        annotations=annotations,
        videos=videos or (),
        names=names,
        frames=frames,
        form=form,
        prompt=prompt,
        subtitles=subtitles,
        out=out,
        limit=limit,
        blind=blind,
        prefill=prefill,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        overrides=tuple(overrides or ()),
    )
    try:
        capsule = answer(wanted)
    except KeyboardInterrupt:
        print("stopped: the answers so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if os.environ.get("RANK", "0") == "0":
        _print(capsule.folder, meteor, as_json)
        print(f"capsule: {capsule.folder}", file=sys.stderr if as_json else sys.stdout)


@bench.command("rescore")
def bench_rescore(
    capsule: Annotated[Path, typer.Argument(metavar="CAPSULE", help="A folder that `bench run` filled.")],
    meteor: Meteor = None,
    edited: Annotated[bool, typer.Option("--edited", help="Score it though it is not as it was written.")] = False,
    as_json: Json = False,
) -> None:
    """Score a capsule by every rule, from its files alone: no model, no video.

    Exit code 4: answers were changed after they were written (with --edited they are scored all the same).
    """
    from timeviper.benchmarking.capsule import read_capsule

    if wrong := read_capsule(capsule).edited:
        for sentence in wrong[:10]:
            print(f"edited: {sentence}", file=sys.stderr)
        if len(wrong) > 10:
            print(f"edited: and {len(wrong) - 10:,} more", file=sys.stderr)
        if not edited:
            print("not scored: take the capsule from where it comes from, or give --edited", file=sys.stderr)
            raise typer.Exit(EDITED)
    _print(capsule, meteor, as_json)
    if wrong:
        print("these are the scores of EDITED answers, not of what the model wrote", file=sys.stderr)
        raise typer.Exit(EDITED)


@bench.command("lines")
def bench_lines(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or an export.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ.")
    ] = None,
    frames: Annotated[str, typer.Option(help="As for `bench run`.")] = "run",
    dtype: Annotated[str | None, typer.Option(help="Compute in float32 or bfloat16.")] = None,
) -> None:
    """Answer questions about videos, a line of JSON each on stdin, with lines on stdout: for other programs."""
    from json import dumps

    from timeviper.benchmarking.lines import READY, answer_lines
    from timeviper.benchmarking.protocol import protocol_of
    from timeviper.inference.ask import load

    model = load(run, dtype=dtype, overrides=overrides or [])
    protocol = protocol_of(frames, model.recipe.data.frames)
    print(dumps(READY), flush=True)
    for found in answer_lines(model, protocol, sys.stdin):
        print(dumps(found, ensure_ascii=False), flush=True)


@bench.command("export")
def bench_export(
    capsule: Annotated[Path, typer.Argument(metavar="CAPSULE", help="A folder that `bench run` filled.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files.")],
    to: Annotated[
        str, typer.Option(help="lmms-eval (results and samples) or vlmeval (a table of predictions).")
    ] = "lmms-eval",
) -> None:
    """Write a capsule as the result files of another harness."""
    from timeviper.benchmarking.capsule import read_capsule
    from timeviper.benchmarking.export_capsule import export_capsule

    for path in export_capsule(read_capsule(capsule), out, to):
        print(path)


def _print(folder: Path, jar: Path | None, as_json: bool) -> None:
    from contextlib import nullcontext
    from json import dumps

    from timeviper.benchmarking.capsule import read_capsule
    from timeviper.benchmarking.meteor import Meteor as Program
    from timeviper.benchmarking.rescore import rescore
    from timeviper.benchmarking.score_table import print_scores

    with Program(jar) if jar else nullcontext() as meteor:
        made = rescore(read_capsule(folder), meteor)
    if as_json:
        print(dumps(made.as_dict(), ensure_ascii=False, indent=2))
    else:
        print_scores(made)
