"""The page about whole chains says what the runs say."""

from __future__ import annotations

import bench_chains
from bench_chains import Finished, differences_table, scores_table, spread, transfer_table

from timeviper.inference.eval_report import Report
from timeviper.inference.metrics import Answered, Scores, score


def run(rights: str, gate: float | None = None, off: str = "") -> Finished:
    """Two questions a video: one right answer is "yes", and what was written is that where `rights` has a 1."""
    answers = answered(rights)
    scores: Scores = score(answers)
    drop = score(answered(off)) if off else None
    report = Report(scores, scores, scores, drop, scores_n(answers), [], "x@1", None, "x", [], None, None)
    return Finished(report, answers, {} if gate is None else {"kl": 2 * gate, "gate/early": gate, "moved/early": 1.0})


def answered(rights: str) -> list[Answered]:
    return [
        Answered(f"v/{i // 2}#{i % 2}", ("colour", "when")[i % 2], written, right)
        for i, (flag, right) in enumerate(zip(rights, ["red", "from 1.0 to 3.0 seconds"] * 9))
        for written in [right if flag == "1" else "nothing"]
    ]


def scores_n(answers: list[Answered]) -> dict[str, int]:
    kinds = {answer.type for answer in answers}
    return {"overall": len(answers), **{kind: sum(a.type == kind for a in answers) for kind in kinds}}


CHAINS = {
    "ours": [run("11110111", 0.4, "11110011"), run("11111111", 0.6, "11111011")],
    "theirs": [run("10100111"), run("11101111")],
}


def test_scores_are_mean_lowest_and_highest_of_the_chains() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in scores_table(CHAINS)]
    assert rows[0] == ["question", "n", "ours", "theirs", "transfer off", "blind", "chance"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    assert cells["overall"][:3] == ["8", "0.938 (0.875 to 1.000)", "0.750 (0.625 to 0.875)"]
    assert cells["overall"][3] == "0.812 (0.750 to 0.875)"
    assert cells["when"][:3] == ["4", "1.000 (1.000 to 1.000)", "0.625 (0.500 to 0.750)"]
    assert spread([0.5]) == "0.500"


def test_differences_are_question_by_question_within_a_chain() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in differences_table(CHAINS)]
    found = {(row[0], row[1]): row[2:] for row in rows[2:]}
    gain, over_videos, over_chains = found["theirs", "overall"]
    assert (gain, over_chains) == ("+0.188", "+0.125 to +0.250")
    low, high = (float(end) for end in over_videos.split(" to "))
    assert low <= 0.188 <= high
    assert found["theirs", "colour"][0] == "+0.000"
    assert found["theirs", "when"][0] == "+0.375"


def test_gates_and_divergence_are_those_of_the_meter() -> None:
    rows = transfer_table(CHAINS)
    assert "gate/early" in rows[0]
    assert "kl" in rows[0]
    assert "moved" not in rows[0]
    assert "0.500 (0.400 to 0.600)" in rows[2]
    assert transfer_table({"none": [run("1111")]}) == []


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch) -> None:
    calls: list[tuple[str, ...]] = []

    def command(*words: str) -> None:
        calls.append(words)
        if words[0] == "train":
            out = next(word for word in words if word.startswith("out=")).removeprefix("out=")
            (tmp_path / out / "export").mkdir(parents=True)
        else:
            (tmp_path / words[1] / "eval.json").touch()

    monkeypatch.setattr(bench_chains, "command", command)
    last = {"a": "tiny/stage2_instruct", "b": "experiments/no_transfer"}
    for _ in range(2):
        bench_chains.run_chain(tmp_path / "3", 3, ["tiny/stage0_tower", "tiny/stage1_align"], last, ["x=1"])
    kinds = [words[0] for words in calls]
    assert kinds == ["train", "train", "train", "eval", "train", "eval"]
    starts = [[w for w in words if w.startswith("train.init_from")] for words in calls if words[0] == "train"]
    before = f"train.init_from={tmp_path / '3' / 'stage1_align'}"
    assert starts == [[], [f"train.init_from={tmp_path / '3' / 'stage0_tower'}"], [before], [before]]
    assert all("seed=3" in words and "x=1" in words for words in calls if words[0] == "train")
