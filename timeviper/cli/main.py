"""`timeviper <verb>`: what a person types. A verb imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import sys
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli import analyse_flow, analyse_redundancy, serve  # noqa: F401  verbs of `analyse`
from timeviper.cli.analyse import analyse
from timeviper.cli.bench_capsule import bench
from timeviper.cli.needle_options import COUNT, DEPTHS, LENGTHS, TYPES, NeedleOptions
from timeviper.cli.options import Dtype, MaxNewTokens, Overrides, StateFileOption, Until
from timeviper.cli.report import report
from timeviper.cli.shards import HELP, STOPPED, shards
from timeviper.cli.states import prefill, watch
from timeviper.errors import ConfigError, Problem, one_of
from timeviper.planning.hardware import GPUS

DOUBTFUL = 4  # a stage that has finished with weights that can hardly be what was wanted
# `--steps=3` must reach the recipe loader, whose message says how an override is written.
OVERRIDES = {**HELP, "ignore_unknown_options": True}

FORMS = ("decoder", "transformers")  # of `export`

DOES_NOT_FIT = 3  # of `plan`: a recipe that is wrong ends with 2, anything else with 1

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Train, evaluate and question TimeViper, a hybrid Mamba-2 / attention model for hour-long video.\n\n"
    "A recipe is a YAML file; key=value after it overrides a setting. --debug shows where an error comes from.",
)
app.add_typer(shards, name="shards")
app.add_typer(analyse, name="analyse")
app.add_typer(bench, name="bench")
serve.register(app)


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


RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/tiny/stage2_instruct.yaml.")
]


@app.command(context_settings=OVERRIDES)
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check settings, files and the ranks of this launch; say what was checked."),
    ] = False,
    fits: Annotated[
        bool, typer.Option("--fits", hidden=True, help="Only check the ranks: stages before this one may be missing.")
    ] = False,
) -> None:
    """Run a stage, or continue it where it stopped.

    Ends with 0: finished; 4: finished with weights that can hardly be right; 130: stopped and saved; 2: the recipe; 1.
    """
    from timeviper.config.load import load_recipe
    from timeviper.training.inputs import checked, ready_recipe
    from timeviper.training.launch import check_ranks, ranks

    if check or fits:
        loaded = load_recipe(recipe, overrides or [])
        check_ranks(loaded, math.prod(ranks()))
        if check:
            print("\n".join(checked(loaded, math.prod(ranks()))))
        return
    ready = ready_recipe(recipe, overrides or [])  # what a person can mend is said before the slow imports
    from timeviper.trainer import Outcome, run_stage

    outcome = run_stage(ready, command=_again())
    if outcome is not Outcome.FINISHED:
        raise typer.Exit(STOPPED if outcome is Outcome.STOPPED else DOUBTFUL)


@app.command("eval", context_settings=OVERRIDES)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made it.")],
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Answer again, though answers are there.")] = False,
    max_new_tokens: MaxNewTokens = None,
    dtype: Dtype = None,
) -> None:
    """Answer the held-out questions, beside three baselines; prints a table and writes RUN/eval.json.

    With overrides that change it, the report goes to RUN/evals/. After a recipe, they also say which run is meant.
    Under torchrun the ranks share the questions. The same command continues what was stopped.
    """
    from timeviper.config.shipped import means_recipe

    changes, by_recipe = overrides or [], False
    if means_recipe(run):
        from timeviper.config.load import load_recipe

        run, by_recipe = Path(load_recipe(run, changes).run_dir), True
    from timeviper.inference.eval_report import print_table
    from timeviper.inference.evaluate import changes_of, finished
    from timeviper.inference.evaluate import evaluate as answer

    if by_recipe:
        changes = changes_of(run, changes)

    if max_new_tokens is not None:
        changes = [*changes, f"eval.max_new_tokens={max_new_tokens}"]
    report, first = None if again else finished(run, changes, dtype), os.environ.get("RANK", "0") == "0"
    try:
        report = report or answer(run, changes, dtype=dtype, again=again)
    except KeyboardInterrupt:
        if first:
            print("stopped: the answers so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if first:
        print_table(report)


@app.command(context_settings=OVERRIDES)
def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder or an export; or a capsule of `bench run`.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare two runs on the same held-out questions, with intervals; answers what they have not answered yet.

    Overrides change both evaluations, such as data.val.videos.shards=FOLDER for other questions.
    """
    from json import dumps

    from timeviper.benchmarking.capsule import is_capsule

    if is_capsule(a) or is_capsule(b):
        from timeviper.benchmarking.compare_capsules import compare_capsules
        from timeviper.benchmarking.compare_capsules_table import print_capsules

        if overrides:
            raise ValueError(f"a capsule's answers are given: {overrides[0]} can change nothing; leave it out")
        both = compare_capsules(a, b)
        print(dumps(both.as_dict(), indent=2)) if json else print_capsules(both)
        return
    from timeviper.inference.compare import compare as compare_runs
    from timeviper.inference.compare_table import print_comparison

    comparison = compare_runs(a, b, overrides or [])
    if json:
        print(dumps(comparison.as_dict(), indent=2))
    else:
        print_comparison(comparison)


@app.command(context_settings=OVERRIDES)
def needles(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run folders or exports; settings, for all.")
    ],
    lengths: Annotated[
        str | None, typer.Option(help=f"Frames of the videos; {LENGTHS}, or all that --needles has, if not said.")
    ] = None,
    depths: Annotated[
        int, typer.Option(min=1, max=50, help="Equal parts of a video, each with a needle; of the procedural world.")
    ] = DEPTHS,
    count: Annotated[int, typer.Option(min=1, help="Videos of each length at most.")] = COUNT,
    folder: Annotated[
        str | None,
        typer.Option("--needles", metavar="FOLDER", help="Made by `shards needles`; else of the procedural world."),
    ] = None,
    types: Annotated[str, typer.Option(help="Questions: at, when, order, between.")] = TYPES,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help='drop, none, blind or "KEY=VALUE ...": one more map; may be repeated.'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Picture; RUN/needles/map.svg if not said, with a .json.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures instead of tables.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Answer again, though answers are there.")] = False,
    dtype: Dtype = None,
) -> None:
    """Ask for needles in videos of many lengths and depths, streamed; draws a map of what is found.

    The first answers are kept: the same command continues, and more lengths cost only what is new.
    """
    from timeviper.cli.needles import draw

    try:
        draw(
            words,
            needles=folder,
            lengths=lengths,
            options=NeedleOptions(depths=depths, count=count),
            types=types,
            also=also or [],
            out=out,
            as_json=json,
            dtype=dtype,
            again=again,
        )
    except KeyboardInterrupt:
        print("stopped: the answers so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None


app.command(context_settings=OVERRIDES)(prefill)
app.command(context_settings=OVERRIDES)(watch)


@app.command(context_settings=OVERRIDES)
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
) -> None:
    """Ask a trained model about one video file, of any length: frames are read as they are needed.

    With --state, about a video that was read before; with --video too, the state is made if it is not there yet.
    """
    from json import dumps

    import torch

    from timeviper.cli.states import asked_about
    from timeviper.inference.generate import check_sampling

    check_sampling(temperature, top_p, 0 if max_new_tokens is None else max_new_tokens)
    model, put = asked_about(run, video, state, overrides=overrides or [], dtype=dtype, until=until)
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


@app.command(context_settings=OVERRIDES)
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


@app.command("chat", context_settings=OVERRIDES)
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
) -> None:
    """Talk about a video, line by line: it is read once, and what was said before is remembered."""
    from timeviper.cli.chat import chat

    words = overrides or []
    if run is not None and "=" in str(run) and not run.exists():
        run, words = None, [str(run), *words]
    chat(run, video, state, words, until=until, alone=alone, max_new_tokens=max_new_tokens, dtype=dtype)


app.command("report", context_settings=OVERRIDES)(report)


@app.command(context_settings=OVERRIDES)
def explain(
    recipe: RecipeFile,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART | KEY=VALUE]...", help="Parts to show, such as data.frames; settings that differ."
        ),
    ] = None,
) -> None:
    """Print every setting with its value, where it was written, and what it means; into a pipe, a line each."""
    from timeviper.cli.explain import explain as show_settings

    show_settings(recipe, words or [])


@app.command()
def doctor() -> None:
    """Print what this machine has, and which implementation each operation will use and why."""
    from timeviper.cli.doctor import doctor as examine

    examine()


@app.command(context_settings=OVERRIDES)
def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps to show.")] = 3,
    ranks: Annotated[int, typer.Option(help="Ranks to deal the packs to.")] = 1,
    start: Annotated[int, typer.Option(help="First step to show.")] = 0,
    keys: Annotated[bool, typer.Option("--keys", help="Name every sample, not only the first of a pack.")] = False,
) -> None:
    """Print what each rank will read, and how the sources are mixed, from the shard indexes alone."""
    from timeviper.config.load import load_recipe
    from timeviper.planning.preview import preview as show_plan

    show_plan(load_recipe(recipe, overrides or []), steps, ranks, start=start, keys=keys)


@app.command(context_settings=OVERRIDES)
def plan(
    recipe: RecipeFile,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE2] [KEY=VALUE]...", help="A recipe to compare with; settings, for both."),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all, on nodes of 8.")] = 1,
    gpu: Annotated[str, typer.Option(help=f"{one_of(GPUS)}.")] = "h200",
    efficiency: Annotated[float, typer.Option(help="Share of the GPU's peak arithmetic that is reached.")] = 0.4,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every figure.")] = False,
) -> None:
    """Print what a stage needs, before it runs: tokens, FLOPs, memory of a GPU, hours, and what would make it fit.

    The exit code is 3 where it does not fit.
    """
    from timeviper.config.shipped import means_recipe
    from timeviper.planning.hardware import Assumptions
    from timeviper.planning.show import plan as show_costs

    others = [Path(word) for word in overrides or [] if "=" not in word and means_recipe(word)]
    changes = [word for word in overrides or [] if Path(word) not in others]
    if not show_costs([recipe, *others], changes, gpus, gpu, Assumptions(efficiency=efficiency), as_text=not json):
        raise typer.Exit(DOES_NOT_FIT)


@app.command("import")
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


@app.command("export")
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


@app.command(context_settings=OVERRIDES)
def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder in RUN/incidents.")],
    overrides: Overrides = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print sizes of activations and gradients.")] = False,
) -> None:
    """Repeat a step that went wrong, in one process; ends with 0 if it goes wrong in the same way.

    Start it where the run was started. Overrides say where its data lie now, such as data.sources.x.shards=FOLDER.
    """
    from timeviper.inspection.replay import replay as repeat

    if not repeat(bundle, overrides or [], layers=layers):
        raise typer.Exit(1)


def _again() -> str:
    """What continues this run: its command line, unless a launcher wrote it."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return "the same command"
    program = "timeviper" if shutil.which("timeviper") == sys.argv[0] else os.path.relpath(sys.argv[0])
    return shlex.join([program, *sys.argv[1:]])


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
