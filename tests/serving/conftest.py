"""What the tests of a server share: a small model, a folder of media, a server of it; and another server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest
from elsewhere import Elsewhere
from export_helpers import random_run
from served import Served, serving
from video_helpers import write_clip

from timeviper.inference.ask import LoadedModel, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = random_run(tmp_path_factory.mktemp("run"))
    return load(run, device="cpu", overrides=["eval.max_new_tokens=4", "data.frames.fps=2"])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "media"
    folder.mkdir()
    write_clip(folder / "clip.mp4", 20)
    return folder


@pytest.fixture(scope="module")
def served(model: LoadedModel, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        model, tmp_path_factory.mktemp("store"), media_root=media, max_frames=32, max_body=4 << 20, max_media=4
    ) as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[int]:
    Elsewhere.seen = []
    found = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found.server_port
    found.shutdown()
    found.server_close()
