"""A set put to a run: one prefill a video, killed and continued, on one rank and two; and what is refused."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from capsules import die_answering
from export_helpers import random_run
from jobs import Job
from jobs import run as run_job
from video_helpers import write_clip

from timeviper.benchmarking import bench_run as module
from timeviper.benchmarking.asking import MISSING
from timeviper.benchmarking.bench_run import Wanted, bench_run
from timeviper.benchmarking.capsule import Capsule, CapsuleError, read_capsule
from timeviper.benchmarking.capsule_write import Part
from timeviper.benchmarking.compare_capsules import compare_capsules
from timeviper.benchmarking.rescore import rescore
from timeviper.cli import main as cli
from timeviper.errors import ConfigError
from timeviper.model.viper import TimeViper
from timeviper.training.lock import Held, run_lock

VIDEOS, EACH = 3, 15
FEW = ("eval.tokens_per_piece=130",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 15 questions a video, one of whose videos is missing and one is none; and a run."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "videos").mkdir()
    rows = []
    for v in range(VIDEOS):
        write_clip(folder / "videos" / f"v{v}.mp4", 20 + 10 * v)
        for q in range(EACH):
            asked = {"question": f"Number {q}?", "options": ["red", "blue", "a ring"], "answer": "ABC"[q % 3]}
            rows.append({"id": f"v{v}-{q}", "video": f"v{v}.mp4", **asked})
    (folder / "videos" / "broken.mp4").write_bytes(b"no video")
    rows += [dict(rows[0], id=name, video=f"{name}.mp4") for name in ("gone", "broken")]
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    random_run(folder / "run")
    return folder


def wanted(place: Path, out: Path, **more: Any) -> Wanted:
    told: dict[str, Any] = {"frames": "fps:2:8", "max_new_tokens": 4, "overrides": FEW} | more
    return Wanted("mcq", place / "run", place / "set.jsonl", [place / "videos"], out=out, **told)


def replies(capsule: Capsule) -> dict[tuple[str, str], tuple[str, str]]:
    return {where: (r.reply, r.prompt) for where, r in capsule.replies.items() if not r.error}


@pytest.fixture(scope="module")
def whole(place: Path) -> Capsule:
    return bench_run(wanted(place, place / "whole"), quiet=True)


def frames_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    plain = TimeViper.encode

    def encode(self: TimeViper, frames: Any, *args: Any) -> Any:
        found.append(len(frames))
        return plain(self, frames, *args)

    monkeypatch.setattr(TimeViper, "encode", encode)
    return found


def test_a_video_is_encoded_once_for_all_its_questions(
    place: Path, whole: Capsule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = frames_encoded(monkeypatch)
    once = bench_run(wanted(place, tmp_path / "once"), quiet=True)
    assert sum(encoded) == sum(len(shown.times) for shown in once.frames.values())
    shared = sum(encoded)
    encoded.clear()
    each = bench_run(wanted(place, tmp_path / "each", prefill="question"), quiet=True)
    assert sum(encoded) == EACH * shared
    assert len(replies(whole)) == VIDEOS * EACH
    assert replies(once) == replies(each) == replies(whole)


def test_a_capsule_tells_all_and_scores_itself(whole: Capsule) -> None:
    assert whole.finished
    assert {key: len(shown.times) for key, shown in whole.frames.items()} == {"v0.mp4": 4, "v1.mp4": 6, "v2.mp4": 8}
    assert whole.frames["v0.mp4"].times == (0.2, 0.7, 1.2, 1.7)
    header = whole.header
    assert (header["frames"]["protocol"], header["template"]["form"], header["decoding"]["greedy"]) == (
        *("fps:2:8", "official", True),
    )
    assert len(header["model"]["weights"]) >= 16
    row = json.loads((whole.folder / "items.jsonl").read_text().splitlines()[1])
    assert (row["letter"], row["text"], row["cluster"]) == ("B", "blue", "v0.mp4")
    assert row["shown"] == "A. red\nB. blue\nC. a ring"
    assert "path" not in row["video"]
    made = rescore(whole)
    assert (made.questions, made.asked) == (VIDEOS * EACH + 2, VIDEOS * EACH)
    assert made.errors[MISSING] == 1
    assert any("broken.mp4" in error for error in made.errors)
    assert [s.n for s in made.official] == [VIDEOS * EACH + 2]
    assert [s.n for s in made.answered] == [VIDEOS * EACH]


def test_grey_frames_are_a_baseline_and_ask_nothing_twice(
    place: Path, whole: Capsule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = Part.add

    def add(part: Part, found: Any, shown: Any = ()) -> None:
        asked.extend(r.variant for r in found)
        plain(part, found, shown)

    monkeypatch.setattr(Part, "add", add)
    out = tmp_path / "blind"
    bench_run(wanted(place, out, limit=20), quiet=True)
    assert asked == [""] * 20
    asked.clear()
    made = bench_run(wanted(place, out, limit=20, blind=True), quiet=True)
    assert asked == ["blind"] * 20
    assert {s.rule for s in rescore(made).baselines} >= {"blind", "random"}
    assert replies(made)["", "v0-3"] == replies(whole)["", "v0-3"]


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_stopped_continues(
    place: Path, whole: Capsule, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plain, left = Part.add, [count]

    def add(part: Part, found: Any, shown: Any = ()) -> None:
        plain(part, found, shown)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Part, "add", add)
    out = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        bench_run(wanted(place, out))
    monkeypatch.undo()
    assert rescore(read_capsule(out)).notes[0].startswith("the run is not finished")
    made = bench_run(wanted(place, out))
    assert f"continues: {count * EACH} of {VIDEOS * EACH + 2} answers are there" in capsys.readouterr().err
    assert made.finished
    assert replies(made) == replies(whole)
    assert made.lines == VIDEOS * EACH + 2
    assert not (out / "parts").exists()
    assert compare_capsules(out, whole.folder).rows[0].difference == 0


def arguments(place: Path, out: Path) -> list[str]:
    files = ["--annotations", str(place / "set.jsonl"), "--videos", str(place / "videos"), "--out", str(out)]
    how = ["--frames", "fps:2:8", "--max-new-tokens", "4", *FEW]
    return ["bench", "run", "mcq", str(place / "run"), *files, *how]


def killed(place: Path, out: Path, world: int, who: int, count: int, folder: Path) -> None:
    job = Job(folder, world, *arguments(place, out), first=die_answering, who=who, count=count)
    job.end(seconds=60)
    assert not read_capsule(out).finished


def test_killed_on_two_ranks_each_question_is_answered_once(place: Path, whole: Capsule, tmp_path: Path) -> None:
    out = tmp_path / "c"
    killed(place, out, 2, 1, 1, tmp_path)
    job = run_job(tmp_path, 2, *arguments(place, out))
    assert "official" in job.said()
    made = read_capsule(out)
    assert made.finished
    assert replies(made) == replies(whole)
    assert made.lines == VIDEOS * EACH + 2


def finish(folder: Path, world: int, place: Path, out: Path) -> None:
    """However busy the machine is."""
    job = Job(folder, world, *arguments(place, out))
    assert job.end(seconds=900) == [0] * world, job.said()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [1, 2])
def test_killed_twenty_times_at_random_moments(place: Path, whole: Capsule, tmp_path: Path, world: int) -> None:
    """Several times in one capsule, from the first import to the last line; then it is finished on another number of
    ranks. The moments are drawn over what a whole run takes here."""
    rng, left = random.Random(world), 20
    begun = time.monotonic()
    finish(tmp_path, world, place, tmp_path / "timed")
    lasts = time.monotonic() - begun
    while left:
        out = tmp_path / f"c{left}"
        for _ in range(min(left, rng.randint(1, 4))):
            job = Job(tmp_path, world, *arguments(place, out))
            job.ranks[0].join(rng.uniform(0.0, lasts))
            job.end(seconds=0.1)  # all of them
            left -= 1
        finish(tmp_path, 3 - world, place, out)
        made = read_capsule(out)
        assert made.finished
        assert replies(made) == replies(whole)
        assert made.lines == VIDEOS * EACH + 2


def test_two_runs_do_not_fill_one_capsule(place: Path, tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "c", "wait", "answering"),
        pytest.raises(Held, match=r"is in use: .* is answering there .*let this run write elsewhere \(--out\)"),
    ):
        bench_run(wanted(place, tmp_path / "c"), quiet=True)


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"frames": "fast:2"}, "is none of fps:F:N, uniform:N, first:F:N"),
        ({"frames": "fps:0:8"}, "is none of fps:F:N"),
        ({"frames": "unifrom:8"}, "Did you mean uniform"),
        ({"form": "mine"}, "has official or bare"),
        ({"subtitles": "some"}, "is one of none, shown, vlmeval or all"),
        ({"prefill": "never"}, "is video or question"),
    ],
)
def test_options_that_are_none(place: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        bench_run(wanted(place, tmp_path / "c", **more), quiet=True)
    assert not (tmp_path / "c").exists()


def test_a_prompt_of_ones_own_is_kept_whole(place: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "paper.yaml"
    prompt.write_text('text: "{question} {options}"\ncue: "The answer:"\nmax_new_tokens: 3\n')
    made = bench_run(wanted(place, tmp_path / "c", prompt=prompt, limit=1, max_new_tokens=None), quiet=True)
    template = made.header["template"]
    assert (template["form"], template["cue"]) == ("prompt-paper", "The answer:")
    assert (template["text"], made.header["decoding"]["max_new_tokens"]) == ("{question} {options}", 3)
    with pytest.raises(ConfigError, match="--prompt are two prompts"):
        bench_run(wanted(place, tmp_path / "c", prompt=prompt, form="bare"), quiet=True)


def test_another_protocol_does_not_go_on_with_a_capsule(place: Path, whole: Capsule) -> None:
    with pytest.raises(CapsuleError, match=r"frames.protocol is fps:2:8 there, not uniform:4.*Name another folder"):
        bench_run(wanted(place, whole.folder, frames="uniform:4"), quiet=True)
    with pytest.raises(ConfigError, match="the annotation file of mcq"):
        bench_run(Wanted("mcq", place / "run"), quiet=True)
    depends = {"frames": {"protocol": "fps:1:8"}, "template": {"form": "official"}}
    assert module.default_folder(Wanted("mcq", place / "run"), depends) == (
        place / "run" / "bench" / "mcq.fps-1-8.official"
    )


def test_rescore_says_what_was_edited(whole: Capsule, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in whole.folder.glob("*.json*"):
        (copy / file.name).write_bytes(file.read_bytes())

    def call(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["timeviper", *args])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    assert call("bench", "rescore", str(copy)) == 0
    assert "own set (mcq): accuracy" in capsys.readouterr().out
    assert call("compare", str(copy), str(whole.folder)) == 0
    assert "B against A on the same questions" in capsys.readouterr().out
    answers = copy / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"finish": "length"', '"finish": "stop"', 1))
    assert call("bench", "rescore", str(copy)) == 4
    said = capsys.readouterr()
    assert "was changed after it was written" in said.err
    assert said.out == ""
    assert call("bench", "rescore", str(copy), "--edited", "--json") == 4
    assert json.loads(capsys.readouterr().out)["questions"] == VIDEOS * EACH + 2
    assert call("compare", str(copy), str(whole.folder)) != 0
    assert call("bench", "rescore", str(tmp_path)) != 0
