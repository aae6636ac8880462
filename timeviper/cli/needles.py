"""`timeviper needles` and `timeviper shards needles`: needles are made, asked for, and drawn as a map."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path

from timeviper.cli.needle_options import NeedleOptions
from timeviper.console import ProgressLine
from timeviper.datamodules.needles.build import (
    Progress,
    footage_note,
    held_out_jobs,
    numbers_of,
    training_jobs,
    world_note,
    write_all,
)
from timeviper.datamodules.needles.footage import FootageNeedles
from timeviper.datamodules.needles.material import Material, check_apart, parted, read_material
from timeviper.datamodules.needles.pictures import Layout
from timeviper.datamodules.needles.world import WorldNeedles
from timeviper.errors import one_of
from timeviper.files import write_whole

LAYOUTS: tuple[Layout, ...] = ("inset", "full")
WORLD = Path("data/needles")


def make(out: Path, options: NeedleOptions) -> None:
    """Write what is missing of a folder of needles: of the procedural world, or of somebody's videos and pictures."""
    if (options.videos is None) != (options.images is None):
        lacks, has = ("--images", "--videos") if options.images is None else ("--videos", "--images")
        raise ValueError(
            f"{has} needs {lacks}, too: needles are captioned pictures in videos; without both they are "
            "of the procedural world"
        )
    if options.videos is None or options.images is None:
        lacking = [
            name
            for name, given in (
                ("--train", options.train),
                ("--held-out-videos", options.held_out_videos),
                ("--held-out-images", options.held_out_images),
            )
            if given
        ]
        if lacking:
            raise ValueError(
                f"{lacking[0]} is for needles in your own videos (--videos, --images): of the procedural "
                "world, train on `timeviper shards world --kind crowded`"
            )
        make_world(out, numbers_of(options.lengths, "--lengths"), options)
        print(out / "val")
        return
    _make_footage(out, options.videos, options.images, options)


def make_world(out: Path, lengths: Sequence[int], options: NeedleOptions, *, quiet: bool = False) -> None:
    needles = WorldNeedles(options.depths, options.fps, options.seed)
    jobs = held_out_jobs(out, needles, lengths, options.count)
    with ProgressLine(sys.stderr, every=inf if quiet else None, stays=False) as line:
        write_all(out, jobs, world_note(needles), options.workers or os.cpu_count() or 1, _told(line))


def _make_footage(out: Path, videos: Path, images: Path, options: NeedleOptions) -> None:
    lengths, shown = numbers_of(options.lengths, "--lengths"), numbers_of(options.shown, "--shown")
    train_lengths = numbers_of(options.train_lengths, "--train-lengths") if options.train_lengths else lengths
    if len(shown) != 2 or not 2 <= shown[0] <= shown[1]:
        raise ValueError(f"--shown {options.shown}: write the fewest and the most frames, 2 or more, such as 3,5")
    if options.layout not in LAYOUTS:
        raise ValueError(f"--layout {options.layout}: it is {one_of(LAYOUTS)}")
    train, held_out = _material(videos, images, options)
    layout: Layout = "inset" if options.layout == "inset" else "full"

    def side(material: Material, training: bool) -> FootageNeedles:
        clips, pictures = tuple(material.clips.items), tuple(material.pictures.items)
        lasting = shown[0], shown[1]
        return FootageNeedles(options.depths, options.fps, options.seed, clips, pictures, lasting, layout, training)

    sides = {"val": side(held_out, training=False)}
    if train:
        sides["train"] = side(train, training=True)
    jobs = held_out_jobs(out, sides["val"], lengths, options.count)
    if train:
        jobs += training_jobs(out, sides["train"], train_lengths, options.train)
    for name, needles in sides.items():
        files = len(needles.clips), len(needles.pictures), len({p.caption for p in needles.pictures})
        print(f"{name}: {files[0]:,} videos, {files[1]:,} pictures with {files[2]:,} captions, {layout}")
        for frames in sorted(set(train_lengths if name == "train" else lengths)):
            for note in needles.notes(frames):
                print(f"note: {name}: {note}")
    if train:
        known = {p.caption for p in train.pictures.items}
        new = {p.caption for p in held_out.pictures.items} - known
        print(f"captions that training never shows: {len(new):,} of the held-out ones")
    note = footage_note(options.seed, options.depths, options.fps, (shown[0], shown[1]), layout, held_out, train)
    with ProgressLine(sys.stderr, stays=False) as line:
        write_all(out, jobs, note, options.workers or os.cpu_count() or 1, _told(line))
    print(*(out / name for name in sides))


def _material(videos: Path, images: Path, options: NeedleOptions) -> tuple[Material | None, Material]:
    """What training shows (None: it is not asked for), and what is held out."""
    found, others = read_material(videos, images), (options.held_out_videos, options.held_out_images)
    if others == (None, None):
        return parted(found, options.held_out) if options.train else (None, found)
    if options.held_out_videos is None or options.held_out_images is None:
        raise ValueError("--held-out-videos and --held-out-images say together what training never shows: give both")
    held_out = read_material(options.held_out_videos, options.held_out_images)
    if not options.train:
        raise ValueError(
            "held-out material is named, but nothing to be trained on: give --train VIDEOS, too, or name "
            "the held-out material with --videos and --images alone"
        )
    check_apart(found, held_out)
    return found, held_out


def _told(line: ProgressLine) -> Progress:
    def show(done: int, total: int) -> None:
        line.count(done, total, "frames")

    return show


def draw(
    words: Sequence[str],
    *,
    needles: str | None,
    lengths: str | None,
    options: NeedleOptions,
    types: str,
    also: Sequence[str],
    out: Path | None,
    as_json: bool,
    dtype: str | None,
    again: bool,
) -> None:
    """Ask the runs among `words` for needles, under the overrides among them; print tables, write picture and figures.

    Without a folder of needles, those of the procedural world are made in data/needles, if they are not there.
    """
    runs, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not runs:
        raise ValueError("name a run folder or an export: timeviper needles runs/tiny/stage3_long")
    from timeviper.inference.eval_report import folder_of
    from timeviper.inference.needle_map import compare_maps
    from timeviper.inference.needle_picture import picture
    from timeviper.inference.needle_table import print_maps
    from timeviper.inference.needles import FOLDER, ask_needles, find_haystacks
    from timeviper.weights.export import check_export
    from timeviper.weights.lineage import find_export

    for run in runs:
        check_export(find_export(run))
    first = os.environ.get("RANK", "0") == "0"
    if needles is None:
        wanted = numbers_of(lengths or options.lengths, "--lengths")
        needles = str(WORLD / f"{options.depths}-depths")
        make_world(Path(needles), wanted, options, quiet=not first)  # by every rank: a shard is whole or not there
    else:
        wanted = numbers_of(lengths, "--lengths") if lengths else None
    place = str(Path(needles, "val")) if Path(needles, "val").is_dir() else needles
    asked_types = [word.strip() for word in types.split(",") if word.strip()]
    haystacks = find_haystacks(place, wanted, asked_types, options.count)
    asked = [one for run in runs for one in ask_needles(run, haystacks, overrides, also, dtype=dtype, again=again)]
    if not first:
        return
    comparison = compare_maps(haystacks, asked)
    target = out or folder_of(find_export(runs[0])) / FOLDER / "map.svg"
    target = target.with_suffix(".svg")
    target.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(comparison.as_dict(), indent=2) + "\n"
    write_whole(target, picture(comparison))
    write_whole(target.with_suffix(".json"), content)
    if as_json:
        print(content, end="")
        return
    print_maps(comparison)
    print(f"{target}, and the figures in {target.with_suffix('.json')}")
