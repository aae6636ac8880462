"""`timeviper shards <verb>`: make, inspect and mend shards of data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.needle_options import COUNT, DEPTHS, LENGTHS, NeedleOptions
from timeviper.console import ProgressLine

HELP = {"help_option_names": ["-h", "--help"]}
STOPPED = 130  # asked to stop before the end: what waits for this (make) must not go on

shards = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Make and inspect shards of data.")


def _on_disk(folder: Path) -> None:
    """ValueError for a URL, of which a path has lost a slash."""
    scheme, mark, place = str(folder).partition(":/")
    if mark and scheme.isalnum() and not folder.exists():
        raise ValueError(
            f"{scheme}://{place.lstrip('/')} is not on this disk, and every byte of the shards is read here: do it "
            "before they are uploaded, or copy them first (aws s3 sync, gsutil rsync, rclone, wget)"
        )


@shards.command("world")
def shards_world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")] = Path("data/world"),
    scale: Annotated[str, typer.Option(help="How much: small (a smoke test), default, or a factor.")] = "default",
    workers: Annotated[int, typer.Option(help="Processes that draw and encode; 0: one a core.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed is another world.")] = 0,
    kind: Annotated[
        str, typer.Option(help="default; long: needles; crowded: many objects; glimpses: one a second.")
    ] = "default",
) -> None:
    """Draw the default data: a procedural video world with captions and questions."""
    from timeviper.datamodules.world.world import build_world

    with ProgressLine() as line:

        def told(n: int, total: int) -> None:
            line.count(n, total, "samples")

        build_world(out, scale, workers or os.cpu_count() or 1, seed, told, kind)
    print(f"written: {out}")


@shards.command("needles")
def shards_needles(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards: OUT/val, and OUT/train.")],
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Videos to hide pictures in; else the procedural world.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="CSV", help="The pictures: a column for the file, one for the caption.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Frames of the videos, as the model is shown them.")] = LENGTHS,
    depths: Annotated[int, typer.Option(min=1, max=50, help="Equal parts of a video, each with a needle.")] = DEPTHS,
    count: Annotated[int, typer.Option(min=1, help="Held-out videos of each length.")] = COUNT,
    train: Annotated[int, typer.Option(min=0, help="Videos of each length for training, of other material.")] = 0,
    train_lengths: Annotated[str | None, typer.Option(help="Frames of those; --lengths if not said.")] = None,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of videos and of pictures that training never shows.")
    ] = 0.25,
    held_out_videos: Annotated[Path | None, typer.Option(metavar="FOLDER", help="These, instead of a share.")] = None,
    held_out_images: Annotated[Path | None, typer.Option(metavar="CSV", help="These, instead of a share.")] = None,
    shown: Annotated[str, typer.Option(help="Fewest and most frames that show a picture.")] = "3,5",
    layout: Annotated[str, typer.Option(help="inset: on the video; full: in its place.")] = "inset",
    fps: Annotated[float, typer.Option(help="Frames a second that the model is shown.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Another seed makes others of the same material.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that encode; 0: one a core.")] = 0,
) -> None:
    """Hide captioned pictures in your own long videos, with questions and exact answers; for `timeviper needles`.

    Clips keep their rate and size; where a video is longer than they are, they follow each other.
    The same command continues; more lengths and videos are added to what is there.
    """
    from timeviper.cli.needles import make

    options = NeedleOptions(
        lengths=lengths,
        depths=depths,
        count=count,
        train=train,
        train_lengths=train_lengths,
        fps=fps,
        seed=seed,
        workers=workers,
        videos=videos,
        images=images,
        held_out_videos=held_out_videos,
        held_out_images=held_out_images,
        held_out=held_out,
        shown=shown,
        layout=layout,
    )
    make(out, options)


@shards.command("write")
def shards_write(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="JSONL, JSON, CSV, TSV or Parquet; a folder of media, or of tars."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    form: Annotated[str, typer.Option("--format", help="auto, or one of docs/your-data.md.")] = "auto",
    part: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N parts, for a batch array.")] = "1/1",
    workers: Annotated[int, typer.Option(min=0, help="Processes that write; 0: one a core.")] = 0,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples in one tar.")] = 256,
    media_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where names of media start, and what they must not leave.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Read as if this field were not there; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only such entries, as split=train; may be repeated."),
    ] = None,
    frame_rate: Annotated[
        float | None, typer.Option(min=0.001, max=1000.0, help="Pictures a second, where frames lie in folders.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the tars are called, so that several sources share a folder.")
    ] = "shard",
    held_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for a share of the media that is kept from training.")
    ] = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="How large that share is.")] = 0.01,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out what cannot be used; OUT/unusable.jsonl lists it.")
    ] = False,
    max_skipped: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share that may be left out, as data.max_skipped in training.")
    ] = 0.005,
) -> None:
    """Turn your own videos and their texts into shards; the same command continues (formats: docs/your-data.md)."""
    from timeviper.cli.write_shards import WriteOptions, write

    options = WriteOptions(
        form=form,
        part=part,
        workers=workers,
        samples_per_shard=samples_per_shard,
        media_root=media_root,
        ignore=frozenset(ignore or []),
        only=tuple(only or ()),
        frame_rate=frame_rate,
        name=name,
        held_out=held_out,
        share=share,
        skip_unusable=skip_unusable,
        max_skipped=max_skipped,
    )
    if not write(source, out, options):
        raise typer.Exit(STOPPED)


@shards.command("index")
def shards_index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tar shards.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: one a core.")] = 0,
) -> None:
    """Index shards that were made elsewhere, and put all indexes of a folder into one file; again: what is new."""
    from timeviper.datamodules.shards.index import index_shards

    _on_disk(folder)
    with ProgressLine() as line:
        written = index_shards(folder, line, workers or os.cpu_count() or 1)
    print(f"{len(written)} index{'es' * (len(written) != 1)} in {folder}")


@shards.command("check")
def shards_check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tar shards.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Report to write.")] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="New folder for mended copies; the exit code is then theirs.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: one a core.")] = 0,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Decode the frames that this recipe wants.")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.0, help="Frames a second that are decoded; 1 if not said.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="At most so many of a video; 256 if not said.")] = None,
    max_text: Annotated[int | None, typer.Option(min=1, help="Bytes of a conversation; 131072 if not said.")] = None,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Count this kind of problem as a note; may be repeated.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Remember here what is done: the same command continues, parts come together."
        ),
    ] = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N parts, for a batch array.")] = "1/1",
) -> None:
    """Read every byte and decode every wanted frame; name what is bad, exit code 1 if anything is."""
    from timeviper.cli.check_shards import check, config_of

    _on_disk(folder)
    config = config_of(recipe, fps, max_frames, max_text, accept or [])
    if not check(folder, config, workers or os.cpu_count() or 1, json_file, fix, state, part):
        raise typer.Exit(1)


@shards.command("overlap")
def shards_overlap(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tar shards, such as training data.")],
    media: Annotated[
        Path, typer.Argument(metavar="MEDIA", help="Videos and images, or shards of them: held-out data.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Report to write.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: one a core.")] = 0,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="That of `check`: shards that it remembers are not read again.")
    ] = None,
) -> None:
    """Find MEDIA in shards, by bytes and by look; exit code 1 if any is there."""
    from timeviper.cli.overlap import overlap

    if not overlap(folder, media, workers or os.cpu_count() or 1, json_file, state):
        raise typer.Exit(1)


@shards.command("features", context_settings={**HELP, "ignore_unknown_options": True})
def shards_features(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Its frozen towers run over its data.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the recipe.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only this source (repeatable), by name or key.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: in turns with the towers.")] = 0,
) -> None:
    """Run the frozen towers once, and train from their merged features; the same command continues."""
    from timeviper.config.load import load_recipe
    from timeviper.training.inputs import check_inputs

    checked = load_recipe(recipe, overrides or [])
    check_inputs(checked)
    from timeviper.features.write import write_features

    if not write_features(checked, out, source or [], workers):
        raise typer.Exit(STOPPED)
