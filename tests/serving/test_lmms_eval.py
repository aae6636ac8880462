"""lmms-eval, in an environment of its own whose Python is `LMMS_EVAL_PYTHON`, puts twenty items to a served model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from served import serving
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import FramesConfig
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.video import read_video
from timeviper.inference.ask import LoadedModel

PYTHON = os.environ.get("LMMS_EVAL_PYTHON", "")
SERVED = ROOT / "integrations/lmms-eval/served"
COUNT = 20
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no Python")]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    (folder / "videos").mkdir()
    clips = [write_clip(folder / "videos" / f"{n}.mp4", 40 + n) for n in range(COUNT)]
    lines = [{"video": str(clip), "question": f"What is at {clip.stem}?", "answer": "a ring"} for clip in clips]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("backend", "more"), [("async_openai", "fps=1"), ("openai", "max_frames_num=8,pass_video_url=True")]
)
def test_a_task_of_twenty_items(backend: str, more: str, model: LoadedModel, items: Path, tmp_path: Path) -> None:
    """Frames as pictures, whose times are not told: all answered. Videos by their place: the answers of `ask`."""
    with serving(model, tmp_path / "store", media_root=items / "videos") as served:
        args = f"base_url={served.url}/v1,model_version=default,{more}"
        task = ["--include_path", str(SERVED), "--tasks", "timeviper_served", "--log_samples", "--output_path", backend]
        command = [PYTHON, "-m", "lmms_eval", "--model", backend, "--model_args", args, *task]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": f"{served.url}/v1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=items, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
        counts = served.server.engine.counts
        assert (counts.finished, counts.failed) == (COUNT, 0)
    (log,) = (items / backend).rglob("*samples_timeviper_served.jsonl")
    found = {}
    for line in log.read_text().splitlines():
        sample = json.loads(line)
        found[sample["doc_id"]] = sample["filtered_resps"]
    asked = [json.loads(line) for line in (items / "items.jsonl").read_text().splitlines()]
    assert len(found) == len(asked) == COUNT
    if backend == "openai":
        size = pack_format(model.recipe).image_size
        for number, item in enumerate(asked):
            frames = read_video(item["video"], size, FramesConfig(min_frames=8, max_frames=8))
            # lmms-eval takes off spaces at the ends.
            assert found[number] == model.ask(item["question"], frames, max_new_tokens=32).text.strip()
