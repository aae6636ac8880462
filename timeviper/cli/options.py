"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/tiny/stage2_instruct.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the recipe, such as optim.lr=1e-4."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of an answer at most; eval.max_new_tokens of the recipe if not said.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Compute in float32 or bfloat16; if not said, as in training on a GPU, in float32 elsewhere."),
]
Quantise = Annotated[
    str | None,
    typer.Option(help="Keep the decoder's weights in int8, or fp8 on GPUs that have it; short for eval.quantise=int8."),
]
StateFileOption = Annotated[
    Path | None, typer.Option("--state", metavar="FILE", help="What `prefill` or `watch` keeps of a video.")
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Of a video being watched: only so much of it, such as 37:00.")
]
MaxBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The most that a state may take, such as 800MB or 2GB.")
]


def quantised(kind: str | None) -> list[str]:
    """`Quantise` as an override."""
    return [] if kind is None else [f"eval.quantise={kind}"]
