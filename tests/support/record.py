"""What the product says and makes, as a folder of digests and texts that two versions of the code can be compared by.

    python tests/support/record.py OUT            # run this tree's `timeviper` and note everything in OUT/record
    diff -r BEFORE/record AFTER/record            # nothing: nothing is computed differently

It only types commands, so the same file records any version. One thread: sums then have one order.
Times of day and speeds are left out. About 8 minutes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

TREE = Path(os.environ.get("TREE", Path(__file__).resolve().parents[2]))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TREE), "COLUMNS": "120", "TERM": "dumb"}
VERBS = [
    "train",
    "eval",
    "compare",
    "ask",
    "explain",
    "doctor",
    "preview",
    "plan",
    "import",
    "export",
    "replay",
    "shards",
    "shards-world",
    "shards-write",
    "shards-index",
    "shards-check",
    "shards-features",
]
FEW = ["train.steps=40", "train.validate_every=20", "train.validate_samples=8", "eval.samples=40", "data.workers=0"]
STAGES = {
    "stage0_tower": [],
    "stage1_align": ["train.phases.videos.start=20", "data.tokens_per_pack=2048"],
    "stage2_instruct": ["data.tokens_per_pack=2048"],
    "stage3_long": ["train.phases.frames64.start=10", "train.phases.frames512.start=20", "eval.samples=10"],
}


def main(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "record").mkdir()
    (out / "recipes").symlink_to(TREE / "recipes")
    run = Recorder(out)
    for verb in VERBS:
        run(f"help-{verb}", *verb.split("-"), "--help")
    run("world", "shards", "world", "data/world", "--scale", "small", "--workers", "1")
    run("world-long", "shards", "world", "data/long", "--kind", "long", "--scale", "small", "--workers", "1")
    run.digests("world-files", "data")
    for stage, extra in STAGES.items():
        run.quietly("train", f"recipes/tiny/{stage}.yaml", *FEW, *extra)
        folder = out / "runs/tiny" / stage
        run.note(f"{stage}-lineage", (folder / "export/lineage.json").read_text())
        run.note(f"{stage}-losses", _losses(folder))
        if stage not in ("stage0_tower",):
            run.quietly("eval", f"runs/tiny/{stage}")
            run.note(f"{stage}-eval", _without(json.loads((folder / "eval.json").read_text())))
    for recipe in sorted((TREE / "recipes").rglob("*.yaml")):
        name = recipe.relative_to(TREE / "recipes").as_posix()
        flat = name.replace("/", "-").removesuffix(".yaml")
        run(f"explain-{flat}", "explain", f"recipes/{name}")
        run(f"preview-{flat}", "preview", f"recipes/{name}", "--steps", "3", "--ranks", "2", "--keys")
        run(f"plan-{flat}", "plan", f"recipes/{name}", "--json", "--gpus", "8" if "nano9b" in name else "1")
        run(f"plan-text-{flat}", "plan", f"recipes/{name}", "--gpus", "8" if "nano9b" in name else "1")
    _ask(run, out)
    _own_data(run, out)
    run.digests("all-exports", "runs", "**/*.safetensors")


def _ask(run: Recorder, out: Path) -> None:
    with tarfile.open(out / "data/world/val/videos/shard-00000.tar") as tar:
        member = next(m for m in tar if m.name.endswith(".mp4"))
        (out / "example.mp4").write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    for extra in ([], ["--json"]):
        run(
            "ask" + "".join(extra),
            "ask",
            "--run",
            "runs/tiny/stage2_instruct",
            "--video",
            "example.mp4",
            "What is it?",
            *extra,
        )


def _own_data(run: Recorder, out: Path) -> None:
    """Clips and their captions as a table: written, checked, mended, indexed; features of the frozen tower."""
    rows = [{"video": "example.mp4", "caption": f"clip number {i}"} for i in range(5)]
    (out / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("write", "shards", "write", "clips.jsonl", "mine", "--workers", "1")
    for name, folder in (("mine", "mine"), ("world", "data/world/val/videos")):
        run(f"check-{name}", "shards", "check", folder, "--json", f"check-{name}.json")
        found = json.loads((out / f"check-{name}.json").read_text())
        run.note(f"check-{name}-json", _without(found) if isinstance(found, dict) else json.dumps(found, indent=1))
    run("index", "shards", "index", "mine")
    run(
        "features",
        "shards",
        "features",
        "recipes/tiny/stage2_instruct.yaml",
        "feats",
        "--source",
        "videos",
        "train.init_from=runs/tiny/stage1_align/export",
    )
    run.digests("own-files", "mine")
    run.digests("feature-files", "feats")


class Recorder:
    """Runs `timeviper` in `out` and keeps what it said, less what differs from run to run."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, name: str, *words: str) -> None:
        done = self._run(words)
        self.note(name, f"{done.returncode}\n{_timeless(done.stdout)}\n--- stderr\n{_timeless(done.stderr)}")

    def quietly(self, *words: str) -> None:
        done = self._run(words)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")

    def _run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        print("timeviper", *words, flush=True)
        command = [sys.executable, "-m", "timeviper.cli", *words]
        return subprocess.run(command, cwd=self.out, env=ENV, capture_output=True, text=True)

    def note(self, name: str, text: str) -> None:
        (self.out / "record" / name).write_text(text.replace(str(self.out), "OUT").replace(str(TREE), "TREE") + "\n")

    def digests(self, name: str, folder: str, pattern: str = "**/*") -> None:
        files = sorted(p for p in (self.out / folder).glob(pattern) if p.is_file())
        self.note(
            name, "\n".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(self.out)}" for p in files)
        )


def _timeless(text: str) -> str:
    """Without progress, durations, rates and memory that was measured, which differ from run to run."""
    text = re.sub(r"\d[\d.,:]*(?= ?(s|min|h|ms|us|MB/s|GB/s|MiB|it/s|samples/s|frames/s)\b)", "#", text)
    progress = r"frames/s|samples/s|left 0:|^[\d,]+/[\d,]+ |^$"
    lines = (line for line in text.splitlines() if not re.search(progress, line))
    return re.sub(r"/tmp/\S+", "/tmp/#", "\n".join(lines))


def _losses(folder: Path) -> str:
    rows = []
    for file in sorted(folder.glob("logs/**/*.csv")):
        for row in csv.DictReader(file.open()):
            rows.append(
                " ".join(f"{k}={v}" for k, v in sorted(row.items()) if "loss" in k or "grad" in k or k == "step")
            )
    return "\n".join(rows)


def _without(report: dict) -> str:
    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {
                k: clean(v) for k, v in value.items() if not re.search("seconds?$|time$|speed|memory|peak|forecast", k)
            }
        return [clean(v) for v in value] if isinstance(value, list) else value

    return json.dumps(clean(report), indent=1, sort_keys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
