"""Lookalikes among 10,000 to 1,000,000 media: CPU time and memory of the doctor's search, beside comparing all.

    python benchmarks/bench_search.py OUT.md [--counts 10000 100000 1000000] [--mapped FOLDER]

Signatures are made up, with the statistics of videos: brightness and colour that vary with the video, and in each
detail that fades with its fineness, in space as in time. A twentieth are noisy copies of others. In `studios`, a tenth
are of 1,000 rooms, each seen by many cameras: near each other, but not alike; `dim` is nearly
black throughout, so that all are near each other.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.checks.kept import Found, shelf
from timeviper.datamodules.checks.lookalikes import lookalikes
from timeviper.datamodules.checks.perceptual import LOOKS, SAME_CELL, SAME_RMS
from timeviper.datamodules.checks.sample import CheckConfig, Examined, Sample
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.shards.tar import Member

Looks = NDArray[np.uint8]
SHAPE = LOOKS[False][1]  # of a video
COPIES = 20  # one in so many is a copy
PER_SHARD = 250
BRUTE = 2000  # signatures that are compared each with each to know what that takes
CHUNK = 2048


class Videos:
    """Draws signatures."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.rng, self.kind = np.random.default_rng(seed), kind
        places = np.stack(np.meshgrid(*[np.arange(8.0)] * 3, indexing="ij"), -1).reshape(-1, 3) * (0.7, 1.0, 1.0)
        apart = np.sqrt(((places[:, None] - places) ** 2).sum(-1))
        strength, waves = np.linalg.eigh(np.exp(-apart / 5.0))  # cells of a video are alike that are near each other
        self.waves = (waves * np.sqrt(strength.clip(0)))[:, -160:].T.astype(np.float32)
        self.rooms = self._draw(1000, 1.0)

    def _draw(self, count: int, contrast: float) -> NDArray[np.float32]:
        def channel(mean: float, spread: float, detail: float) -> NDArray[np.float32]:
            level = self.rng.normal(mean, spread, (count, 1, 1, 1))
            field = self.rng.standard_normal((count, len(self.waves)), dtype=np.float32) @ self.waves
            return (level + detail * field.reshape(count, 8, 8, 8)).astype(np.float32)

        luma, blue, red = channel(110, 30, 35 * contrast), channel(0, 8, 8 * contrast), channel(0, 10, 8 * contrast)
        return np.stack([luma + 1.4 * red, luma - 0.34 * blue - 0.7 * red, luma + 1.77 * blue], 2, dtype=np.float32)

    def draw(self, count: int) -> Looks:
        found = self._draw(count, 1.0)
        if self.kind == "dim":
            found *= 0.15
        if self.kind == "studios":
            some = self.rng.random(count) < 0.1
            rooms = self.rooms[self.rng.integers(0, len(self.rooms), int(some.sum()))]
            found[some] = rooms + 0.1 * (found[some] - 110)
        return found.clip(0, 255).astype(np.uint8)

    def fill(self, looks: Looks) -> int:
        """How many are copies."""
        copies = 0
        for begin in range(0, len(looks), CHUNK):
            some = self.draw(min(CHUNK, len(looks) - begin))
            if begin:
                own = self.rng.choice(len(some), len(some) // COPIES, replace=False)
                of = np.sort(self.rng.integers(0, begin, len(own)))
                some[own] = (looks[of] + self.rng.normal(0, 1.2, some[own].shape)).round().clip(0, 255)
                copies += len(own)
            looks[begin : begin + len(some)] = some
        return copies


def each_with_each(looks: Looks) -> int:
    """Lookalikes, by comparing with all that were kept."""
    flat, kept, found = looks.reshape(len(looks), -1), np.zeros(len(looks), bool), 0
    for i, look in enumerate(flat):
        alike = False
        candidates = np.flatnonzero(kept[:i])
        for begin in range(0, len(candidates), 1024):
            away = np.abs(flat[candidates[begin : begin + 1024]].astype(np.int16) - look)
            squares = np.square(away, dtype=np.int32).sum(axis=1)
            alike |= bool(((squares <= SAME_RMS**2 * flat.shape[1]) & (away.max(axis=1) <= SAME_CELL)).any())
        kept[i] = not alike
        found += alike
    return found


def peak() -> float:
    """MB that are the process's own: what is mapped from files can be read again."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="*", default=["videos", "studios", "dim"])
    parser.add_argument("--report", type=int, default=100_000, help="samples of which a whole report is made")
    parser.add_argument("--mapped", type=Path, help="folder for the signatures: 1.5 GB for 1,000,000")
    args = parser.parse_args()
    looks = np.empty((BRUTE, *SHAPE), np.uint8)
    Videos("videos").fill(looks)
    begun = time.process_time()
    found = each_with_each(looks)
    pair = (time.process_time() - begun) / (BRUTE**2 / 2)
    assert found == (lookalikes(looks, SAME_RMS, SAME_CELL)[0] >= 0).sum()
    lines = [
        "# Lookalikes among many media",
        "",
        f"`python benchmarks/bench_search.py`, {platform.processor() or platform.machine()}, one thread, numpy "
        f"{np.__version__}. Made-up signatures of videos (1,536 bytes each), mapped from a file; a twentieth are "
        f"copies. Comparing each with each takes {pair * 1e6:.2f} us a pair, measured on {BRUTE:,}, and finds the "
        "same; its time for more is reckoned from that. `studios`: a tenth are of 1,000 rooms, near each other but not "
        "alike. "
        "`dim`: all nearly black, so that most differ "
        "little, and the search grows with the square of their number.",
        "",
        "| media | of | copies | found | CPU s | us each | each with each | faster by | own memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    args.out.write_text("\n".join(lines) + "\n")
    for kind in args.kinds:
        for count in args.counts:
            with tempfile.TemporaryDirectory(dir=args.mapped) as folder:
                looks = np.memmap(Path(folder) / "looks", np.uint8, "w+", shape=(count, *SHAPE))
                copies = Videos(kind).fill(looks)
                looks.flush()
                before, begun = peak(), time.process_time()
                watch = Watch()
                first, _ = lookalikes(looks, SAME_RMS, SAME_CELL)
                seconds, most = time.process_time() - begun, watch.end()
                del looks
            brute = pair * count**2 / 2
            lines.append(
                f"| {count:,} | {kind} | {copies:,} | {int((first >= 0).sum()):,} | {seconds:.1f} | "
                f"{seconds / count * 1e6:.0f} | {brute / 3600:.2g} h | {brute / seconds:,.0f} | {most - before:.0f} |"
            )
            args.out.write_text("\n".join(lines) + "\n")
            print(lines[-1], flush=True)
    lines += ["", report(args.report, args.mapped)]
    args.out.write_text("\n".join(lines) + "\n")


def report(count: int, place: Path | None) -> str:
    """What comes after the decoding: a check of shards all of which its state remembers."""
    rng, videos, config = np.random.default_rng(0), Videos("videos"), CheckConfig()
    with tempfile.TemporaryDirectory(dir=place) as folder:
        shards = Path(folder) / "in"
        shards.mkdir()
        with shelf(Path(folder) / "state", shards, config) as kept:
            for number in range(count // PER_SHARD):
                tar, found = shards / f"shard-{number:05d}.tar", Found()
                tar.touch()
                for i, look in enumerate(videos.draw(PER_SHARD)):
                    sample = Sample(tar, tar.name, f"video-{number}-{i}", {"mp4": Member("", "mp4", i, 1)}, None)
                    found.add(sample, Examined([], {"mp4": rng.bytes(16)}, bytes(16), {}, {"mp4": look}, 9, 0.1, 1))
                kept.put(tar, found, kept.about(tar))
        before, begun, watch = peak(), time.process_time(), Watch()
        assert check_shards(shards, config, 0, None, Path(folder) / "state").samples == count
        seconds, most = time.process_time() - begun, watch.end()
        size = sum(path.stat().st_size for path in (Path(folder) / "state").iterdir())
    return (
        f"After the decoding, the report of {count:,} samples that `--state` remembers in shards of {PER_SHARD}, this "
        f"search included: {seconds:.1f} CPU s, {most - before:.0f} MB; the state takes {size / count:,.0f} bytes each."
    )


class Watch:
    """The most memory of its own that this process has, looked at ten times a second."""

    def __init__(self) -> None:
        self._most, self._over = peak(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self._most = max(self._most, peak())

    def end(self) -> float:
        self._over.set()
        self._thread.join()
        return self._most


if __name__ == "__main__":
    main()
