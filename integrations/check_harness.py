"""A harness and a capsule on the same small sets of the procedural world: the same replies, and the same numbers.

    python integrations/check_harness.py lmms-eval PYTHON RUN WORK     two tasks of lmms-eval, two of VLMEvalKit:
    python integrations/check_harness.py vlmeval PYTHON RUN WORK       their own readers, their own scorers

PYTHON: that of the environment in which the harness and the adapter of this folder are installed. RUN: a trained run.
WORK: a folder for all that is written. It runs in timeviper's own environment, and ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timeviper.benchmarking.bench_run import Wanted, bench_run
from timeviper.benchmarking.capsule import Capsule
from timeviper.benchmarking.export_capsule import export_capsule
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.registry import load_set
from timeviper.benchmarking.rescore import rescore
from timeviper.benchmarking.world_sets import write_world_sets

TIMEVIPER = f"{sys.executable} -m timeviper.cli"
NOWHERE = "0" * 40  # a revision of no repository
DECIMALS = 0.005  # of 100: VLMEvalKit prints two


@dataclass(frozen=True)
class Task:
    """A task of a harness beside a set of ours."""

    set: str
    name: str
    measure: str
    """Of ours."""
    theirs: str
    """Where their number stands."""
    max_new_tokens: int


LMMS = (
    Task("charades", "temporal_grounding_charades", "mIoU", "charades_sta_mIOU,none", 50),
    Task("videomme_v2", "videomme_v2", "group score", "videomme_v2_overall_score,none", 64),
)
VLMEVAL = (
    Task("mlvu", "MLVU_MCQ", "accuracy", "", 64),
    Task("mvbench", "MVBench", "accuracy", "overall", 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", choices=("lmms-eval", "vlmeval"))
    parser.add_argument("python", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--videos", type=int, default=24, help="of the world, whose questions are asked")
    parser.add_argument("--frames", type=int, default=8)
    told = parser.parse_args()
    work, run = told.work.resolve(), told.run.resolve()
    sets = work / "sets"
    write_world_sets(sets, told.videos)
    ask = _lmms_eval if told.harness == "lmms-eval" else _vlmeval
    right = True
    for task, replies, number in ask(told.python, run, work, sets, told.frames):
        capsule = _capsule(task, told.harness, run, work, sets, told.frames)
        right &= _same(task, told.harness, capsule, replies, number)
        right &= _exported(task, told.harness, told.python, capsule, work, number)
    sys.exit(0 if right else 1)


def _capsule(task: Task, harness: str, run: Path, work: Path, sets: Path, frames: int) -> Capsule:
    """The same questions through `timeviper bench run`."""
    protocol = f"uniform:{frames}" if harness == "lmms-eval" else f"vlmeval:{frames}"
    out, place = work / "capsules" / task.set, sets / task.set
    shutil.rmtree(out, ignore_errors=True)
    longest = task.max_new_tokens
    wanted = Wanted(task.set, run, place, [place], frames=protocol, form="bare", out=out, max_new_tokens=longest)
    return bench_run(wanted, quiet=True)


def _same(task: Task, harness: str, capsule: Capsule, replies: dict[str, str], number: float) -> bool:
    """Print a line, and the first replies that differ."""
    policy = "lmms" if harness == "lmms-eval" else "vlmeval"
    ours = {key: reply.reply.strip() for key, reply in capsule.of("").items()}
    differ = sorted(key for key in ours.keys() | replies.keys() if ours.get(key) != replies.get(key))
    score = next(s.value for s in rescore(capsule).scores if (s.rule, s.measure) == (policy, task.measure))
    equal = abs(score - number) <= DECIMALS and not differ
    told = f"{len(ours) - len(differ)} of {len(ours)} replies the same"
    print(
        f"{'same  ' if equal else 'DIFFER'} {task.name}: {harness} {number:.4f}, capsule {score:.4f} ({policy}); {told}"
    )
    for key in differ[:5]:
        print(f"       {key}: {replies.get(key)!r}, capsule {ours.get(key)!r}")
    if not 0 < number < 100:
        print("       a number that proves nothing: take a run that answers some and not all")
    return equal and 0 < number < 100


_READ = {
    # what lmms-eval's --baseline reads
    "lmms-eval": "from lmms_eval.baselines.loader import load_baseline; s = load_baseline({path!r}, {task!r})[0]; "
    "print('FOUND', 100 * sum(s.values()) / len(s))",
    "vlmeval": "from vlmeval.dataset import {task}; import json; "
    "print('FOUND', json.dumps({task}.evaluate({path!r}, model='exact_matching')))",
}


def _exported(task: Task, harness: str, python: Path, capsule: Capsule, work: Path, number: float) -> bool:
    """Whether the harness reads an export of the capsule as its own, and scores it alike."""
    if harness == "lmms-eval" and task.measure == "mIoU":
        return True  # its --baseline compares answers that are right or wrong
    out = work / "exported" / task.set
    shutil.rmtree(out, ignore_errors=True)
    path = export_capsule(capsule, out, harness)[-1]
    code = _READ[harness].format(path=str(path), task=task.name)
    done = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=work)
    told = next(line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND "))
    if harness == "lmms-eval":  # which compares questions, not groups
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        want, found = 100 * sum(row.get("score", 0.0) for row in rows) / len(rows), float(told)
    else:
        want, found = number, _accuracy(task, json.loads(told))
    equal = abs(want - found) <= DECIMALS
    print(
        f"{'same  ' if equal else 'DIFFER'} {task.name}: {harness} reads the export as {found:.4f}, wanted {want:.4f}"
    )
    return equal


def _accuracy(task: Task, rating: dict[str, Any]) -> float:
    """Of what VLMEvalKit's `evaluate` returns: counts of right and all by task, whose sum it prints."""
    counts = [rating[task.theirs]] if task.theirs else list(rating.values())
    return 100 * sum(one[0] for one in counts) / sum(one[1] for one in counts)


# ---- lmms-eval -------------------------------------------------------------------------------------------


def _lmms_eval(
    python: Path, run: Path, work: Path, sets: Path, frames: int
) -> Iterator[tuple[Task, dict[str, str], float]]:
    """Its own tasks, of which only the place of the annotations is another; videos lie where it unpacks them."""
    home, tasks, out = work / "hf", work / "tasks", work / "lmms-eval"
    shutil.rmtree(out, ignore_errors=True)
    tasks.mkdir(parents=True, exist_ok=True)
    home.mkdir(exist_ok=True)
    told = "import lmms_eval, pathlib; print(pathlib.Path(lmms_eval.__file__).parent / 'tasks')"
    theirs = Path(subprocess.run([python, "-c", told], check=True, capture_output=True, text=True).stdout.split()[-1])
    for task in LMMS:
        (home / _FOLDERS[task.set]).unlink(missing_ok=True)
        (home / _FOLDERS[task.set]).symlink_to(sets / task.set)
        file = tasks / f"{task.name}_small.yaml"
        rows = tasks / f"{task.name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _rows(task.set, sets)))
        whole = theirs / _YAML[task.set]
        made: dict[str, Any] = {"include": str(whole), "task": f"{task.name}_small", "dataset_path": "json"}
        made |= {"dataset_kwargs": {"data_files": {"test": str(rows)}}}
        file.write_text(json.dumps(made))  # which is YAML, too
    args = f"pretrained={run},command={TIMEVIPER},frames=uniform:{frames},bare=yes"
    names = ",".join(f"{task.name}_small" for task in LMMS)
    command = [python, "-m", "lmms_eval", "--model", "timeviper", "--model_args", args, "--tasks", names]
    command += ["--include_path", tasks, "--output_path", out, "--log_samples", "--batch_size", "1"]
    subprocess.run(command, check=True, env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    written = list(out.rglob("*_results.json"))
    if not written:
        sys.exit("lmms-eval wrote no results; its own message stands above")
    results = json.loads(written[0].read_text())["results"]
    for task in LMMS:
        file = next(out.rglob(f"*_samples_{task.name}_small.jsonl"))
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        keys = [item.key for item in load_set(task.set, sets / task.set).items]
        texts = [row["filtered_resps"] for row in rows]  # lists of one before 0.7.3
        replies = {keys[r["doc_id"]]: (t if isinstance(t, str) else t[0]).strip() for r, t in zip(rows, texts)}
        yield task, replies, results[f"{task.name}_small"][task.theirs]


_FOLDERS = {"charades": "charades_sta", "videomme_v2": "videomme_v2"}
_YAML = {"charades": "charades_sta/charades.yaml", "videomme_v2": "videomme_v2/videomme_v2.yaml"}


def _rows(name: str, sets: Path) -> list[dict[str, Any]]:
    """Annotations as the copies on the Hub have them, on which lmms-eval works."""
    if name == "videomme_v2":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(sets / name / "test.parquet").to_pylist()
    items = load_set(name, sets / name).items
    return [{"video": f"{i.video.name}.mp4", "caption": i.question, "timestamp": list(i.windows[0])} for i in items]


# ---- VLMEvalKit ------------------------------------------------------------------------------------------

# Its datasets hold the files of a download against a digest, which is that of the small ones here.
_VLMEVAL = """
import json, sys
from functools import partial
import pandas
from vlmeval.dataset.mlvu import MLVU_MCQ
from vlmeval.dataset.mvbench import MVBench
from vlmeval.dataset.video_dataset_config import supported_video_datasets
from vlmeval.smp import md5
told = json.loads(sys.argv.pop(1))
for maker in (MLVU_MCQ, MVBench):
    name, place = maker.__name__, told["places"][maker.__name__]
    table = pandas.DataFrame(told["rows"][name])
    table.assign(index=range(len(table))).to_csv(f"{place}/{name}.tsv", sep="\\t", index=False)
    maker.MD5 = md5(f"{place}/{name}.tsv")
    supported_video_datasets[name] = partial(maker, dataset=name, nframe=told["frames"])
from timeviper_vlmevalkit.__main__ import main
main()
for name in told["rows"]:
    file = f"{told['out']}/TimeViper/TimeViper_{name}.xlsx"
    rows = pandas.read_excel(file).fillna("").to_dict("records")
    print("REPLIES", json.dumps([name, [str(row["prediction"]) for row in rows]]))
    print("RATING", json.dumps([name, supported_video_datasets[name].func.evaluate(file, model="exact_matching")]))
"""


def _vlmeval(
    python: Path, run: Path, work: Path, sets: Path, frames: int
) -> Iterator[tuple[Task, dict[str, str], float]]:
    """Its own datasets, in the folders in which it looks for downloads."""
    hub, out = work / "hf" / "hub", work / "vlmeval"
    shutil.rmtree(out, ignore_errors=True)
    places, rows = {}, {}
    for name, repository in (("MLVU_MCQ", "MLVU--MVLU"), ("MVBench", "OpenGVLab--MVBench")):
        place = hub / f"datasets--{repository}" / "snapshots" / NOWHERE
        place.mkdir(parents=True, exist_ok=True)
        refs = place.parents[1] / "refs" / "main"
        refs.parent.mkdir(exist_ok=True)
        refs.write_text(NOWHERE)
        set_name = {"MLVU_MCQ": "mlvu", "MVBench": "mvbench"}[name]
        link = place / ("MLVU" if name == "MLVU_MCQ" else "video")
        link.unlink(missing_ok=True)
        link.symlink_to(sets / set_name if name == "MLVU_MCQ" else sets / set_name / "video")
        places[name] = str(place)
        rows[name] = [_row(name, item) for item in load_set(set_name, sets / set_name).items]
    (work / "lmu").mkdir(exist_ok=True)
    told = json.dumps({"places": places, "rows": rows, "frames": frames, "out": str(out)})
    command = [python, "-c", _VLMEVAL, told, "--run", run, "--command", TIMEVIPER, "--bare", "--max-new-tokens", "64"]
    command += ["--name", "TimeViper", "--data", *rows, "--judge", "exact_matching", "--work-dir", out]
    env = os.environ | {"HF_HOME": str(work / "hf"), "LMUData": str(work / "lmu"), "HF_HUB_OFFLINE": "1"}
    env["VLMEVALKIT_USE_MODELSCOPE"] = "0"  # where the release on PyPI looks first
    done = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True, cwd=work)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    replies = dict(json.loads(text) for word, _, text in lines if word == "REPLIES")
    ratings = dict(json.loads(text) for word, _, text in lines if word == "RATING")
    for task in VLMEVAL:
        keys = [item.key for item in load_set(task.set, sets / task.set).items]
        yield task, dict(zip(keys, replies[task.name])), _accuracy(task, ratings[task.name])


def _row(name: str, item: Item) -> dict[str, Any]:
    """A line of the table that VLMEvalKit makes of a download."""
    assert item.right is not None
    folder, _, video = item.video.name.rpartition("/")
    row = {"task_type": item.label("task")[0], "video": video, "question": item.question}
    row |= {"answer": item.options[item.right], "candidates": list(item.options)}
    if name == "MLVU_MCQ":
        return row | {"prefix": f"./MLVU/video/{folder}", "duration": item.duration}
    return row | {"prefix": f"video/{folder}", "data_type": "video", "bound": False, "start": None, "end": None}


if __name__ == "__main__":
    main()
