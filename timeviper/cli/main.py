"""`timeviper <verb>`: what a person types. A verb imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from hashlib import sha256
from typing import Annotated

import typer

from timeviper.cli import analyse_flow, analyse_redundancy, serve  # noqa: F401  verbs of `analyse`
from timeviper.cli.analyse import analyse
from timeviper.cli.before import doctor, explain, plan, preview
from timeviper.cli.bench_capsule import bench
from timeviper.cli.questions import ask, chat_about, look
from timeviper.cli.report import report
from timeviper.cli.runs import compare, evaluate, needles, replay, train
from timeviper.cli.shards import HELP, shards
from timeviper.cli.states import prefill, watch
from timeviper.cli.weights import export_weights, import_weights
from timeviper.errors import ConfigError

# `--steps=3` must reach the recipe loader, whose message says how an override is written.
OVERRIDES = {**HELP, "ignore_unknown_options": True}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Train, evaluate and question TimeViper, a hybrid Mamba-2 / attention model for hour-long video.\n\n"
    "A recipe is a YAML file; key=value after it overrides a setting. --debug shows where an error comes from.",
)

# As help lists them: a stage and its worth, questions, what is known before, weights.
for verb in (train, evaluate, compare, needles, replay, ask, chat_about, prefill, watch, look, report):
    app.command({"evaluate": "eval", "chat_about": "chat"}.get(verb.__name__), context_settings=OVERRIDES)(verb)
serve.register(app)
for verb in (explain, preview, plan):
    app.command(context_settings=OVERRIDES)(verb)
app.command()(doctor)
app.command("import")(import_weights)
app.command("export")(export_weights)
for group, name in ((shards, "shards"), (analyse, "analyse"), (bench, "bench")):
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        from timeviper.package import VERSION

        print(f"timeviper {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What holds for every verb; its help is that of `app`."""


def main() -> None:
    """Entry point: an error that a person can mend is one message and an exit code, without a traceback."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's: what all ranks would say, the first one says
        logging.getLogger("timeviper").setLevel(logging.ERROR)
    debug = "--debug" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--debug"]
    try:
        app()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if debug:
            raise
        if isinstance(error, RuntimeError):
            from timeviper.training.ends import foreseen

            if (told := foreseen(error)) is None:
                raise
            error = OSError(told)
        if _is_first_to_say(str(error)):
            print(f"error: {error}", file=sys.stderr)
            if type(error) is ValueError:  # perhaps not meant for people: our own errors are subclasses
                print("(add --debug to see where this comes from)", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _is_first_to_say(text: str) -> bool:
    """Whether this rank is the first of the job with this message: what all ranks would say, one of them says.

    torchrun's own key-value store counts, which is there before the ranks know each other, and when some are gone.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    import torch.distributed as dist  # not for the sake of a verb that needs no torch

    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"timeviper/said/{restart}/{sha256(text.encode()).hexdigest()}", 1) == 1
    except (OSError, RuntimeError, KeyError, ValueError):  # without the store, better twice than not at all
        return True
