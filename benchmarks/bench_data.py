"""Benchmarks of reading data, each into a file of `benchmarks/`.

`python benchmarks/bench_data.py decoding` compares ways to take some frames out of an hour of video;
`... loader` compares the loader with the bare decoding of the same frames; `... features` a stage trained from
videos with one trained from stored features; `... far` reads frames of an hour from a web server that takes its time.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import date
from pathlib import Path

import bench_decoding as decoding

RECIPES = ["recipes/tiny/stage2_instruct.yaml", "recipes/tiny/stage3_long.yaml"]
PAGES = {
    "decoding": "Frames out of long videos",
    "loader": "The loader against bare decoding",
    "features": "Training from videos and from features",
    "far": "Frames out of an hour behind a web server",
}


def write_page(what: str, hardware: str, lines: list[str], folder: Path) -> Path:
    """`<what>_<hardware>_<date>.md`."""
    head = [f"# {PAGES[what]}, {hardware}", "", f"{date.today()}, made by", ""]
    command = f"    python benchmarks/bench_data.py {' '.join(sys.argv[1:])}"
    path = folder / f"{what}_{hardware}_{date.today()}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, command, "", *lines, ""]))
    return path


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PAGES)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="videos and peers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--runs", type=int, default=5)
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--minutes", type=float, default=60.0, help="length of the video")
    decoding.add_argument("--frames", type=_numbers, default=[256, 1024], help="how many of its frames")
    decoding.add_argument("--gop", type=_numbers, default=[30, 250], help="frames from keyframe to keyframe")
    decoding.add_argument("--size", type=int, default=224, help="pixels a side")
    decoding.add_argument("--peers", action="store_true", help="install torchcodec and decord into the cache first")
    far = parser.add_argument_group("far")
    far.add_argument("--delays", type=_numbers, default=[5, 50, 200], help="milliseconds of each answer")
    loader = parser.add_argument_group("loader")
    loader.add_argument("--recipes", nargs="+", default=RECIPES, help="whose steps are read")
    loader.add_argument("--steps", type=int, default=60)
    loader.add_argument("--epochs", type=int, default=20, help="in which memory is watched")
    loader.add_argument("--small", default="data/world/val/videos", help="shards in whose epochs memory is watched")
    return parser.parse_args()


def main() -> None:
    args, machine = parse(), platform.machine()
    if args.what == "decoding":
        if args.peers:
            decoding.install_peers(args.cache / "peers")
        lines = decoding.table(args.cache, args.minutes, args.frames, args.gop, args.size, args.runs)
        hardware = f"{machine}-cpu-1thread"
    elif args.what == "far":
        import bench_far as far

        delays = [delay / 1e3 for delay in args.delays]
        lines = far.table(args.cache, args.frames[0], args.gop, args.size, args.runs, delays)
        hardware = f"{machine}-cpu-1thread"
    elif args.what == "features":
        import bench_features as features

        from timeviper.config.load import load_recipe

        lines = features.table(load_recipe(args.recipes[0]), args.steps, args.runs, args.cache)
        hardware = f"{machine}-cpu-1thread"
    else:
        import bench_loader as loader

        from timeviper.config.load import load_recipe

        recipes = [load_recipe(name) for name in args.recipes]
        lines = loader.table(recipes, args.steps, args.runs, args.small, args.epochs, args.cache)
        hardware = f"{machine}-cpu-{os.cpu_count()}cores"
    print(f"written: {write_page(args.what, hardware, lines, args.out)}")


if __name__ == "__main__":
    main()
