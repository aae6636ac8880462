"""A capsule in the result files of other harnesses: lmms-eval's results and samples, VLMEvalKit's table of predictions.

Their programs read these as if they had asked themselves; what they leave out (frames, prompts) stays in the capsule,
whose id is written into what has room for it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper.benchmarking.capsule import Capsule
from timeviper.benchmarking.groups import RELEVANCE
from timeviper.benchmarking.item import LETTERS, Item
from timeviper.benchmarking.policies import choice_rules
from timeviper.benchmarking.rescore import rescore
from timeviper.benchmarking.scores import Rescored
from timeviper.benchmarking.scoring import Unscored, judge
from timeviper.files import write_whole

TO = ("lmms-eval", "vlmeval")
# Names of the sets there, where they are others than ours.
TASKS = {
    "charades": "temporal_grounding_charades",
    "longvideobench": "longvideobench_val_v",
    "mlvu": "mlvu_dev",
    "egoschema": "egoschema_subset",
    "nextqa": "nextqa_mc_test",
    "tempcompass": "tempcompass_multi_choice",
}
LABELS = {"task": "task_type", "aspect": "dim"}
"""Columns of VLMEvalKit's tables, where they are called otherwise than our labels."""
TABLES = {
    "videomme": "Video-MME",
    "videomme_v2": "Video-MME-v2",
    "longvideobench": "LongVideoBench",
    "mlvu": "MLVU_MCQ",
    "mvbench": "MVBench",
    "tempcompass": "TempCompass_MCQ",
}


def export_capsule(capsule: Capsule, out: Path, to: str) -> list[Path]:
    """Write the files of a harness into a folder; returns them. ValueError for another harness."""
    if to not in TO:
        raise ValueError(f"capsules go to {' or '.join(TO)}, not {to!r}")
    out.mkdir(parents=True, exist_ok=True)
    return _lmms(capsule, out) if to == TO[0] else _vlmeval(capsule, out)


def _model(capsule: Capsule) -> str:
    """A name for folders and files."""
    model = capsule.header["model"]
    return re.sub(r"[^\w.-]+", "-", f"timeviper-{model.get('recipe', '')}-{str(model.get('weights'))[:8]}")


def _texts(capsule: Capsule) -> Mapping[str, str]:
    """Replies; "" where there is none, as both count what failed."""
    return {item.key: reply.reply if (reply := capsule.of("").get(item.key)) else "" for item in capsule.items}


# ---- lmms-eval -------------------------------------------------------------------------------------------


def _lmms(capsule: Capsule, out: Path) -> list[Path]:
    """`DATE_results.json` and `DATE_samples_TASK.jsonl` in a folder of the model's name."""
    task, made, texts = TASKS.get(capsule.set_name, capsule.set_name), rescore(capsule), _texts(capsule)
    date = time.strftime("%Y%m%d_%H%M%S")
    folder = out / _model(capsule)
    folder.mkdir(parents=True, exist_ok=True)
    right = _right(capsule, texts)
    samples = [_sample(i, item, texts[item.key], right.get(item.key)) for i, item in enumerate(capsule.items)]
    rows = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    results = json.dumps(_results(capsule, made, task, date), ensure_ascii=False, indent=2)
    return [
        write_whole(folder / f"{date}_results.json", results + "\n"),
        write_whole(folder / f"{date}_samples_{task}.jsonl", "".join(row + "\n" for row in rows)),
    ]


def _right(capsule: Capsule, texts: Mapping[str, str]) -> dict[str, bool]:
    """Choices that the set's own rule finds right, which `--baseline` of lmms-eval compares."""
    items = [item for item in capsule.items if item.is_choice]
    rule = choice_rules(capsule.header, items)[0]
    return {one.item.key: bool(one.right) for one in judge(rule, items, texts, Unscored())}


def _sample(number: int, item: Item, reply: str, right: bool | None) -> dict[str, Any]:
    """A line as lmms-eval 0.7.3 writes it, with the question, which that leaves out."""
    doc = {"question_id": item.key, "video": item.video.name, "question": item.question, "options": list(item.options)}
    doc |= {name: list(values) for name, values in item.labels.items()}
    target = item.letter or str(list(item.windows[0]) if item.windows else list(item.answers))
    digest = sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()
    made = {"doc_id": number, "doc": doc, "target": target, "filtered_resps": reply, "doc_hash": digest}
    return made if right is None else made | {"score": float(right)}


def _results(capsule: Capsule, made: Rescored, task: str, date: str) -> dict[str, Any]:
    scores: dict[str, Any] = {"alias": task}
    for score in made.official:
        name = f"{task}_{re.sub(r'[^a-z0-9.]+', '_', score.measure.lower())}"
        scores |= {f"{name},none": score.value, f"{name}_stderr,none": (score.high - score.low) / 3.92}
    header = capsule.header
    return {
        "results": {task: scores},
        "configs": {task: {"task": task, "dataset_path": header["set"]["title"], "metadata": {"version": 0.0}}},
        "versions": {task: 0.0},
        "n-shot": {task: 0},
        "n-samples": {task: {"original": made.questions, "effective": made.questions}},
        "config": {
            "model": "timeviper",
            "model_args": f"pretrained={header['model'].get('path', '')},frames={header['frames']['protocol']}",
            "gen_kwargs": header["decoding"],
            "capsule": header["id"],
        },
        "model_name": _model(capsule),
        "date": date,
    }


# ---- VLMEvalKit ------------------------------------------------------------------------------------------


def _vlmeval(capsule: Capsule, out: Path) -> list[Path]:
    """`MODEL_TABLE.tsv`, a row a question with its `prediction`, which `evaluate` of the dataset's class reads."""
    texts, model = _texts(capsule), _model(capsule)
    protocol = str(capsule.header["frames"]["protocol"]).replace(":", "-")
    table = f"{TABLES.get(capsule.set_name, capsule.set_name)}_{protocol}"
    rows = [
        _row(number, item, capsule.set_name) | {"prediction": texts[item.key]}
        for number, item in enumerate(capsule.items)
    ]
    text = io.StringIO()
    head = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "prediction"]
    writer = csv.DictWriter(text, [*head, "prediction"], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (out / model).mkdir(parents=True, exist_ok=True)
    return [write_whole(out / model / f"{model}_{table}.tsv", text.getvalue())]


def _row(number: int, item: Item, set_name: str) -> dict[str, Any]:
    """What VLMEvalKit's table of a set has, whose columns differ from set to set."""
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, item.options)]
    text = item.options[item.right] if item.right is not None else ""
    row: dict[str, Any] = {"index": number, "question_id": item.key, "video": item.video.name}
    row |= {"question": item.question, "candidates": lettered, **dict(zip(LETTERS, item.options))}
    row["answer"] = item.letter or (item.answers[0] if item.answers else list(item.windows))
    row |= {LABELS.get(name, name): ", ".join(item.label(name)) for name in item.labels}
    match set_name:
        case "mlvu" | "mvbench":
            row |= {"candidates": list(item.options), "answer": text or row["answer"]}
        case "videomme_v2":
            logic = item.group_rule != RELEVANCE
            row |= {"options": "\n".join(lettered), "group_structure": item.group_rule if logic else "[1,2,3,4]"}
        case "longvideobench":
            row |= {"correct_choice": item.right}
        case "tempcompass":
            row |= {"task_type": "multi-choice", "answer": f"{item.letter}. {text}"}
    return row
