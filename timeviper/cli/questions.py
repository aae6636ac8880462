"""`timeviper ask`, `look` and `chat`: questions about a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.options import Dtype, MaxNewTokens, Overrides, Quantise, StateFileOption, Until, quantised


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about the video.")],
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="A run folder or an export; that of the state if not said.")] = None,
    video: Annotated[Path | None, typer.Option(help="Any video or image file that PyAV opens.")] = None,
    state: StateFileOption = None,
    until: Until = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with times and kept tokens.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token; above: drawn.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="What is drawn: the same seed gives the same answer.")] = 0,
    dtype: Dtype = None,
    quantise: Quantise = None,
) -> None:
    """Ask a trained model about one video file, of any length: frames are read as they are needed.

    With --state, about a video that was read before; with --video too, the state is made if it is not there yet.
    """
    from json import dumps

    import torch

    from timeviper.cli.states import asked_about
    from timeviper.inference.generate import check_sampling

    check_sampling(temperature, top_p, 0 if max_new_tokens is None else max_new_tokens)
    model, put = asked_about(
        run, video, state, overrides=[*(overrides or []), *quantised(quantise)], dtype=dtype, until=until
    )
    answer = put(
        question,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        generator=torch.Generator(model.device).manual_seed(seed),
        stream=not json,
    )
    if json:
        print(dumps(answer.as_dict(), ensure_ascii=False, indent=2))


def look(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about the video.")],
    run: Annotated[Path, typer.Option(help="A run folder or an export.")],
    video: Annotated[Path, typer.Option(help="A video file, of any length.")],
    overrides: Overrides = None,
    rows: Annotated[
        str, typer.Option(help="Whose sight: answer, question or last (the last prompt token).")
    ] = "answer",
    per: Annotated[
        str | None, typer.Option(help="Length of a stretch of time; if not said 1s, or what makes at most 600 of them.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="rows: what is read; relevance: what of it is written, exactly.")
    ] = "rows",
    check: Annotated[
        bool, typer.Option("--check", help="Hide windows, and as many random frames: what each costs the answer.")
    ] = False,
    truth: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="Seconds where the answer is, such as 2.5-7.")
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Of these blocks alone, such as 0,3.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every number instead of a summary.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Folder of the page; RUN/look/... if not said.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    dtype: Dtype = None,
) -> None:
    """Ask about a video, and see which seconds the answer read, block by block, and which frames survived TransV.

    Writes OUT/look.html (no network, no script), look.json and pictures. Takes two runs through the model, with
    --check some more for each halving of the video.
    """
    from timeviper.cli.look import show

    show(
        question,
        run,
        video,
        overrides or [],
        rows=rows,
        per=per,
        method=method,
        truth=truth,
        blocks=blocks,
        check=check,
        as_json=json,
        out=out,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
    )


def chat_about(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder or an export; that of the state if not said.")
    ] = None,
    overrides: Overrides = None,
    video: Annotated[Path | None, typer.Option(help="What the first questions are about.")] = None,
    state: StateFileOption = None,
    until: Until = None,
    alone: Annotated[bool, typer.Option("--alone", help="Each question stands for itself.")] = False,
    max_new_tokens: MaxNewTokens = None,
    dtype: Dtype = None,
    quantise: Quantise = None,
) -> None:
    """Talk about a video, line by line: it is read once, and what was said before is remembered."""
    from timeviper.cli.chat import chat

    words = overrides or []
    if run is not None and "=" in str(run) and not run.exists():
        run, words = None, [str(run), *words]
    chat(
        run,
        video,
        state,
        [*words, *quantised(quantise)],
        until=until,
        alone=alone,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
    )
