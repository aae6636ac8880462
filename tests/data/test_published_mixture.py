"""The published mixture from download to shards: every script on an invented miniature of the layout that it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import image, put, put_json, put_lines, put_tar
from tree import ROOT

from timeviper.config.load import load_recipe
from timeviper.datamodules.build import load_index
from timeviper.errors import ConfigError
from timeviper.training.inputs import check_inputs

SCRIPTS = ROOT / "recipes/nano9b/data"
STAGES = sorted((ROOT / "recipes/nano9b").glob("*.yaml"))
DOC = (ROOT / "docs/nano9b-data.md").read_text(encoding="utf-8")
COUNT = 8  # media of a miniature, so that some are on either side of the cut


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def chats(folder: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "video": f"{folder}{i}.mp4", "conversations": turns("Who?", "Ann."), **more}
        for i in range(COUNT)
    ]


def names(folder: str = "") -> list[str]:
    return [f"{folder}{i}.mp4" for i in range(COUNT)]


def pixelprose(raw: Path) -> None:
    members = []
    for i in range(COUNT):
        said = {"url": f"https://example.org/{i}.jpg", "key": f"{i:09}", "status": "success", "caption": f"Ring {i}."}
        members += [(f"{i:09}.jpg", image()), (f"{i:09}.txt", said["caption"].encode())]
        members.append((f"{i:09}.json", json.dumps(said).encode()))
    members.append(("000000099.json", b'{"status": "failed_to_download", "key": "000000099"}'))
    put_tar(raw / "00000.tar", *members)
    (raw / "00000_stats.json").write_text("{}")


def llava_video(raw: Path) -> None:
    for subset, kind in (("0_30_s_academic_v0_1", "cap"), ("1_2_m_youtube_v0_1", "oe_v0_1_qa")):
        put(raw / subset, *names("academic_source/"))
        put_json(raw / subset / f"{subset}_{kind}_processed.json", chats("academic_source/", data_source=subset))


def kinetics_webvid(raw: Path) -> None:
    put(raw / "videos", *names("k400/"))
    put_json(raw / "sharegpt4video_mix181k_vqa-153k_share-cap-28k.json", chats("k400/"))


def et_instruct(raw: Path) -> None:
    put(raw / "videos", *names("how_to_step/"))
    more = {"task": "tvg", "source": "how_to_step", "duration": 2.0, "src": [], "tgt": [0.5, 1.0]}
    put_json(raw / "et_instruct_164k_txt.json", chats("how_to_step/", **more))
    put_json(raw / "et_instruct_164k_vid.json", chats("gone/"))


def videogpt_plus(raw: Path) -> None:
    put(raw / "videos", *names())
    put_json(raw / "vcg-plus_112K.json", chats(""))


def longvid_moviechat(raw: Path) -> None:
    put(raw.parent / "longvid" / "videos", *names("coin/"))
    put_json(raw.parent / "longvid" / "coin_grounding_10k.json", chats("coin/"))
    movies = put(raw.parent / "moviechat" / "raw_videos", *names()).parent
    (movies / "jsons").mkdir()
    for i in range(COUNT):
        asked = [{"question": "Who?", "answer": "Ann."}, {"question": "Where?", "answer": "Here."}]
        said = {
            "info": {"video_path": f"{i}.mp4"},
            "global": asked,
            "breakpoint": [{"time": 9, "question": "?", "answer": "!"}],
        }
        put_json(movies / "jsons" / f"{i}.json", said)


def llava_onevision(raw: Path) -> None:
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("image", file), ("conversations", pa.list_(turn)), ("data_source", pa.string())]
    )
    for subset in ("ai2d(cauldron,llava_format)", "sharegpt4o"):
        (raw / subset).mkdir(parents=True)
        rows = [
            {
                "id": f"{i}.png",
                "image": {"bytes": image(), "path": f"{i}.jpg"},
                "conversations": turns("What?", "Grey."),
            }
            for i in range(COUNT)
        ]
        rows.append({"id": "text", "image": None, "conversations": [{**t, "value": "1 + 1?"} for t in turns("", "2")]})
        pq.write_table(pa.Table.from_pylist(rows, schema), raw / subset / "train-00000-of-00001.parquet")


def dense_captioning(raw: Path) -> None:
    activitynet(raw)
    for name, kind, file in (
        ("coin", "annotation", "COIN.json"),
        ("youcook2", "annotations", "youcookii_annotations_trainval.json"),
    ):
        put(raw.parent / name / "videos", *names("101/"))
        event = {"segment": [0.5, 1.0], "label" if name == "coin" else "sentence": "stir"}
        said = {str(i): {"subset": "training", "recipe_type": "101", kind: [event]} for i in range(COUNT)}
        said["not-there"] = {"subset": "testing"}
        put_json(raw.parent / name / file, {"database": said})


def temporal_grounding(raw: Path) -> None:
    activitynet(raw)
    put(raw.parent / "charades" / "videos", *names())
    lines = "".join(f"{i} 0.5 1.0##a person runs.\n" for i in range(COUNT))
    (raw.parent / "charades" / "charades_sta_train.txt").write_text(lines)
    put(raw.parent / "qvhighlights" / "videos", *names())
    rows = [
        {"qid": i, "query": "It runs.", "vid": str(i), "duration": 2, "relevant_windows": [[0, 1]]}
        for i in range(COUNT)
    ]
    put_lines(raw.parent / "qvhighlights" / "highlight_train_release.jsonl", *rows)


def activitynet(raw: Path) -> None:
    put(raw.parent / "activitynet" / "videos", *names("v_"))
    said = {f"v_{i}": {"duration": 2.0, "timestamps": [[0.5, 1.0]], "sentences": ["It runs."]} for i in range(COUNT)}
    put_json(raw.parent / "activitynet" / "train.json", said)


# Script: the miniature, the folder of its shards, and what each of them should hold.
MINIATURES: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "pixelprose": (pixelprose, "pixelprose", COUNT),
    "llava-video": (llava_video, "llava-video", 2 * COUNT),
    "kinetics-webvid": (kinetics_webvid, "kinetics-webvid", COUNT),
    "et-instruct": (et_instruct, "et-instruct", COUNT),
    "videogpt-plus": (videogpt_plus, "videogpt-plus", COUNT),
    "longvid-moviechat": (longvid_moviechat, "longvid-moviechat", 3 * COUNT),
    "llava-onevision": (llava_onevision, "llava-onevision-single-image", 2 * COUNT + 2),
    "dense-captioning": (dense_captioning, "dense-captioning", 3 * COUNT),
    "temporal-grounding": (temporal_grounding, "temporal-grounding", 3 * COUNT),
}
SLOW = [name for name in MINIATURES if name != "et-instruct"]


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "bin" / "timeviper"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m timeviper.cli "$@"\n')
    program.chmod(0o755)
    settings = {"RAW": str(folder / "raw"), "OUT": str(folder / "out"), "SHARE": "0.5", "OPTIONS": "--workers 1"}
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    packages = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | settings | {"PATH": path, "PYTHONPATH": packages}
    return subprocess.run(
        ["bash", str(SCRIPTS / f"{script}.sh")], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["et-instruct", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_script_makes_its_shards_and_their_held_out_part(tmp_path: Path, name: str) -> None:
    make, out, expected = MINIATURES[name]
    (tmp_path / "raw" / name).mkdir(parents=True)
    make(tmp_path / "raw" / name)
    done = run(name, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (held_out,) = (tmp_path / "out" / "val").iterdir()
    kept, held = (sum(len(s.samples) for s in load_index(where)) for where in (tmp_path / "out" / out, held_out))
    assert kept + held == expected
    assert min(kept, held) > 0
    assert held_out.name in {"pixelprose": "pixelprose", "longvid-moviechat": "long"}.get(name, "mixed")


def test_without_downloads_a_script_names_the_page(tmp_path: Path) -> None:
    done = run("llava-video", tmp_path)
    assert done.returncode == 1
    assert "docs/nano9b-data.md says what to download" in done.stderr


def test_every_source_of_the_recipes_has_a_script_and_stands_on_the_page() -> None:
    made = {"data/nano9b/val/mixed", "data/nano9b/val/long", "data/nano9b/val/pixelprose"}
    for script in SCRIPTS.glob("*.sh"):
        text = script.read_text()
        made |= {f"data/nano9b/{out}" for out in re.findall(r"^ *make_shards \S+ ([\w-]+) ", text, re.MULTILINE)}
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
        assert f"{script.name}" in DOC or script.name == "common.sh"
    for stage in STAGES:
        data = load_recipe(stage).data
        for source in (*data.sources.values(), *data.val.values()):
            assert source.shards in made
            assert source.shards.removeprefix("data/nano9b/") in DOC
    assert {f"{name}.sh" for name in MINIATURES} | {"all.sh", "common.sh", "weights.sh"} == {
        script.name for script in SCRIPTS.glob("*.sh")
    }


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_what_is_missing_is_said_once_with_page_and_command(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_inputs(load_recipe(stage))
    said = str(caught.value)
    for words in ("recipes/nano9b/data/all.sh", "recipes/nano9b/data/weights.sh", "there are no shards of"):
        assert said.count(words) == 1
    for source in load_recipe(stage).data.sources.values():
        assert source.shards.removeprefix("data/nano9b/") in said
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"data.sources.mine.shards = mine\n +there are no shards: `timeviper shards"):
        check_inputs(load_recipe(stage, ["data.sources.mine.shards=mine"]))
