"""`timeviper import` and `export`: weights of and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timeviper.errors import ConfigError, Problem, one_of

FORMS = ("decoder", "transformers")  # of `export`


def import_weights(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A local checkpoint: config.json and .safetensors.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, for model.decoder.weights or a tower's.")],
) -> None:
    """Bring weights here: of a language model (Nemotron-H, Llama, Qwen2) or an encoder (SigLIP, DINOv2), or a whole
    model that `export --form transformers` wrote, as a stage's export again."""
    from timeviper.serving.hub.read import import_transformers, is_ours
    from timeviper.weights.hub.convert import describe, import_hf

    if is_ours(source):
        return print(f"{import_transformers(source, out)}: {out}")
    print(f"{describe(import_hf(source, out))}: {out}")


def export_weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, its export, or imported weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, in Hugging Face layout without options.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="STEP", help="Write this checkpoint of RUN (a step, or latest) as its last step is.")
    ] = "",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapters of the language model alone, in peft's format.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(help="decoder: the language model alone; transformers: the whole model, with code that loads it."),
    ] = "decoder",
) -> None:
    """Write the language model of a run for other programs; towers, projectors and TransV stay behind.

    With --form transformers, write the whole model as a folder that AutoModelForImageTextToText and AutoProcessor load
    where this package is not installed. With --checkpoint, write the whole model at any checkpoint as a finished
    stage's export, for ask, eval and train.init_from.
    """
    from timeviper.weights.hub.convert import describe, export_hf
    from timeviper.weights.lineage import find_export

    if form not in FORMS or (form != FORMS[0] and (checkpoint or adapter)):
        allowed = f"must be {one_of(FORMS)}" if form not in FORMS else "takes neither --checkpoint nor --adapter"
        raise ConfigError("export", [Problem("--form", form, f"{allowed}.")])
    if form == "transformers":
        from timeviper.serving.hub.write import export_transformers

        return print(f"{export_transformers(find_export(run), out)}: {out}")
    if checkpoint:
        from timeviper.training.restore import export_checkpoint

        return print(f"exported {export_checkpoint(run, checkpoint, out).name}: {out}")
    if adapter:
        from timeviper.weights.peft import export_adapter

        return print(f"{export_adapter(find_export(run), out)}: {out}")
    print(f"{describe(export_hf(find_export(run), out))}: {out}")
