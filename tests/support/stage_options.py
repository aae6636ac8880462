"""The stages of tiny cut down to a few steps, as arguments of the command line."""

from __future__ import annotations

from pathlib import Path

SMALL = [
    "data.tokens_per_pack=1024",
    "data.packs_per_step=2",
    "log.every=1",
    "train.validate_samples=8",
    "log.tensorboard=false",
]


def options(world: Path, runs: Path, stage: str, steps: int, previous: str = "") -> list[str]:
    """A tiny recipe cut down to `steps` small steps, on the test's data and in the test's folder."""
    train, val = {
        "stage0_tower": (["images"], ["images"]),
        "stage1_align": (["images", "clips", "videos", "objects"], ["images", "clips", "videos"]),
        "stage2_instruct": (["images", "clips", "videos", "questions", "motion"], ["videos"]),
    }[stage]
    made = [
        f"recipes/tiny/{stage}.yaml",
        f"out={runs / stage}",
        f"train.steps={steps}",
        "train.validate_every=0",
        *SMALL,
    ]
    made += ["train.phases.videos.start=1"] * (stage == "stage1_align")
    folders = {name: name for name in train} | dict.fromkeys(("objects", "questions", "motion"), "videos")
    made += [f"data.sources.{k}.shards={world / 'train' / folders[k]}" for k in train]
    made += [f"data.val.{k}.shards={world / 'val' / k}" for k in val]
    return made + ([f"train.init_from={runs / previous / 'export'}"] if previous else [])
