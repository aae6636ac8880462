"""`transformers serve` with an exported folder, as docs/huggingface.md starts it. Needs transformers[serving]."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from export_helpers import random_run
from served import video_part
from video_helpers import write_clip

from timeviper.inference.ask import load
from timeviper.serving.hub.write import export_transformers

QUESTION = "What colour is the ring?"
START = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("fastapi") is None, reason="transformers[serving] is not installed"),
]


def post(url: str, body: object) -> dict:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as reply:
        return json.load(reply)


def test_it_answers_as_ask_does(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", "eval.max_new_tokens=12")
    clip = write_clip(tmp_path / "clip.mp4", 90)
    folder = tmp_path / "folder"
    export_transformers(run / "export", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--trust-remote-code", "--chat-template-kwargs", '{"num_frames": null}', "--port", str(port)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", START, "serve", str(folder), *options]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None, server.communicate()[0][-3000:]
                time.sleep(0.5)
        parts = [video_part(f"file://{clip}"), {"type": "text", "text": QUESTION}]
        body = {"model": str(folder), "max_tokens": 12, "messages": [{"role": "user", "content": parts}]}
        found = post(f"http://127.0.0.1:{port}/v1/chat/completions", body)
        expected = load(run, device="cpu").ask(QUESTION, clip).text
        assert found["choices"][0]["message"]["content"].strip() == expected.strip()
    finally:
        server.terminate()
        server.communicate(timeout=60)
