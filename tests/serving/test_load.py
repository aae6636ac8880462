"""Many at a time over loopback with OpenAI's own client; memory after thousands; a kill and what it leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from openai import AsyncOpenAI
from served import Served, form, serving, video_part
from tree import ROOT
from video_helpers import write_clip

from timeviper.cli.main import main
from timeviper.inference.ask import LoadedModel, load

LONG = 8
MANY = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return load(run, device="cpu", overrides=[f"eval.max_new_tokens={LONG}"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"clip{n}.mp4", 20 + 10 * n) for n in range(4)]


@pytest.fixture(scope="module")
def served(model: LoadedModel, clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("store"), media_root=clips[0].parent, queue=MANY) as running:
        yield running


def question(number: int) -> str:
    return f"What is at {number}?"


async def streamed(client: AsyncOpenAI, clip: Path, text: str, longest: int = LONG) -> str:
    messages: Any = [{"role": "user", "content": [video_part(clip.name), {"type": "text", "text": text}]}]
    found = ""
    options: Any = dict(model="timeviper", messages=messages, stream=True, max_completion_tokens=longest)
    async for chunk in await client.chat.completions.create(**options):
        found += chunk.choices[0].delta.content or ""
    return found


def test_two_hundred_streams_at_once_give_what_ask_gives(served: Served, model: LoadedModel, clips: list[Path]) -> None:
    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=300) as client:
            return await asyncio.gather(*(streamed(client, clips[i % 4], question(i % 40)) for i in range(MANY)))

    found = asyncio.run(all_of_them())
    frames = [model.read_video(clip) for clip in clips]
    expected = [model.ask(question(i), frames[i % 4]).text for i in range(40)]
    assert found == expected * (MANY // 40)
    assert len(set(found)) > 4
    engine, states = served.server.engine, served.server.states
    assert engine.counts.most_rows > 1
    assert (states.misses, states.hits) == (4, MANY - 4), "each video was read once"
    assert (engine.rows, engine.held, engine.counts.failed) == (0, 0, 0)


def resident() -> float:
    """MB of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing tells of memory here")
def test_memory_is_flat_over_two_thousand_requests(served: Served, clips: list[Path]) -> None:
    """Streams, whole answers, several answers, clients that leave, files that come and go."""

    async def some(start: int, count: int) -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=300) as client:
            for i in range(start, start + count, 20):
                await asyncio.gather(*(turn(client, k) for k in range(i, i + 20)))

    async def turn(client: AsyncOpenAI, i: int) -> None:
        if i % 10 == 9:
            with pytest.raises((asyncio.TimeoutError, TimeoutError)):
                await asyncio.wait_for(streamed(client, clips[i % 4], question(i), 4), 0.01)
        else:
            await streamed(client, clips[i % 4], question(i % 50), 4)

    def files(i: int) -> None:
        kind, body = form(os.urandom(100_000), f"{i}.mp4")
        id = served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=body).json["id"]
        assert served.call("DELETE", f"/v1/files/{id}").status == 200

    asyncio.run(some(0, 400))
    before, figures = resident(), list[float]()
    for block in range(4):
        asyncio.run(some(400 + 400 * block, 400))
        for i in range(20):
            files(i)
        figures.append(resident() - before)
    print(f"MB more than after 400 requests, after each 400: {figures}")
    assert served.server.engine.held == 0
    assert figures[-1] < 30, f"MB more than after 400 requests, after each 400: {figures}"


def start(run: Path, store: Path, media: Path) -> tuple[subprocess.Popen[str], Served]:
    command = [sys.executable, "-m", "timeviper", "serve", str(run), "--port", "0", "--store", str(store)]
    command += ["--media-root", str(media), "eval.max_new_tokens=6"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = next((line for line in process.stdout if "on http" in line), "")
    assert "on http://127.0.0.1:" in line, process.communicate()[1][-2000:]
    port = int(line.partition("127.0.0.1:")[2].split()[0])
    return process, Served(None, port)  # pyright: ignore[reportArgumentType]


def test_a_kill_loses_no_file_and_no_state(run: Path, clips: list[Path], tmp_path: Path) -> None:
    process, served = start(run, tmp_path, clips[0].parent)
    file = served.upload(clips[0].read_bytes(), "first clip.mp4").json
    video = served.call("POST", "/v1/videos", {"file_id": file["id"]}).json
    answer = served.ask(video_part(video["id"]), "What?").json
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for rest in ("files/incoming-1.tmp", "videos/video-0.tmp", "videos/half"):  # of what was under way
        (tmp_path / "open" / rest).mkdir()
    process, served = start(run, tmp_path, clips[0].parent)
    try:
        assert served.call("GET", "/v1/files").json["data"] == [file]
        assert served.call("GET", "/v1/videos").json["data"] == [video]
        assert served.call("GET", f"/v1/files/{file['id']}/content").body == clips[0].read_bytes()
        again = served.ask(video_part(video["id"]), "What?").json
        assert again["choices"] == answer["choices"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == video["tokens"]
        assert sorted(p.name for p in (tmp_path / "open/videos").iterdir()) == [video["id"]]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in (0, 130, -signal.SIGINT), (out, err)


def test_what_is_said_of_a_start_that_cannot_be(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for args, says in (
            (("--host", "0.0.0.0"), "others could reach the model: give --key-file"),
            (("--media-root", str(tmp_path / "none")), "there is no such folder"),
            (("--queue", "0"), "must be 1 or more"),
            (("--port", "70000"), "from 0 (any that is free) to 65535"),
            (("--port", str(taken.getsockname()[1])), "cannot be listened on"),
        ):
            monkeypatch.setattr(sys, "argv", ["timeviper", "serve", str(run), *args])
            with pytest.raises(SystemExit) as ended:
                main()
            error = capsys.readouterr().err
            assert (ended.value.code, says in error, "Traceback" in error) == (2, True, False), error
