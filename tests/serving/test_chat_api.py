"""Questions over loopback, as the clients ask them that people have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from served import Served, data_url, serving, video_part
from video_helpers import write_clip

from timeviper.inference.ask import LoadedModel, load

QUESTION = "What colour is the ring?"
LONG = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = random_run(tmp_path_factory.mktemp("run"))
    return load(run, device="cpu", overrides=[f"eval.max_new_tokens={LONG}", "data.frames.fps=2"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"clip{n}.mp4", 20 + 10 * n, options={"g": "12"}) for n in range(3)]


@pytest.fixture(scope="module")
def served(model: LoadedModel, clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("store"), media_root=clips[0].parent, max_frames=64) as running:
        yield running


# ---- the three dialects ----


def test_all_dialects_give_the_answer_of_ask(served: Served, model: LoadedModel, clips: list[Path]) -> None:
    expected, data = model.ask(QUESTION, clips[0]), clips[0].read_bytes()
    file = served.upload(data).json["id"]
    video = served.call("POST", "/v1/videos", {"file_id": file}).json["id"]
    text = {"type": "text", "text": QUESTION}
    ways: dict[str, list[Any]] = {
        "data": [video_part(data_url(data)), text],
        "question first": [text, video_part(data_url(data))],
        "bare url": [{"video_url": data_url(data)}, QUESTION],
        "file id": [video_part(file), text],
        "uuid": [{"type": "video_url", "uuid": file}, text],
        "openai's file": [{"type": "file", "file": {"file_id": file}}, text],
        "openai's data": [{"type": "file", "file": {"file_data": data_url(data), "filename": "x.mp4"}}, text],
        "video id": [video_part(video), text],
        "qwen": [{"type": "video", "video": file}, text],
        "path": [video_part(clips[0].name), text],
        "file url": [video_part(f"file://{clips[0]}"), text],
    }
    for way, parts in ways.items():
        reply = served.ask(*parts)
        assert reply.status == 200, (way, reply.body)
        found = reply.json
        assert found["choices"][0]["message"]["content"] == expected.text, way
        more = found["timeviper"]
        assert more["media"][0]["frame_times"] == [round(t, 3) for t in expected.frame_times]
        assert more["tokens"] == {
            "prompt": expected.prompt_tokens,
            "vision": expected.vision_tokens,
            "kept": expected.kept,
        }
        assert found["usage"]["prompt_tokens"] == expected.prompt_tokens


def test_frames_as_pictures_are_a_video(served: Served, model: LoadedModel, tmp_path: Path) -> None:
    """Dialect B: each picture behind its time; and JPEGs joined by commas, whose times the request tells apart."""
    import av
    import numpy as np

    pictures, pixels = [], np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        path = tmp_path / f"{i}.png"
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream("png", rate=1)
            stream.width = stream.height = 32
            stream.pix_fmt = "rgb24"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            out.mux(stream.encode(None))
        pictures.append(data_url(path.read_bytes(), "image/png"))
    times = np.array([0.5, 2.0, 3.5, 5.0, 6.5])
    expected = model.ask(QUESTION, pixels, times=times, duration=7.5)
    parts = []
    for seconds, url in zip(times, pictures):
        parts += [f"<{seconds:.1f} seconds>", {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    told = served.ask(*parts, {"type": "text", "text": QUESTION}).json
    assert told["timeviper"]["media"][0]["frame_times"] == times.tolist()
    joined = "data:video/jpeg;base64," + ",".join(url.partition(",")[2] for url in pictures)
    options = {"video": {"fps": 2, "frames_indices": [1, 4, 7, 10, 13], "duration": 7.5, "do_sample_frames": False}}
    also = served.ask(video_part(joined), QUESTION, media_io_kwargs=options).json
    for found in (told, also):
        assert found["choices"][0]["message"]["content"] == expected.text
        assert found["timeviper"]["tokens"]["prompt"] == expected.prompt_tokens
    plain = served.ask(*({"type": "image_url", "image_url": {"url": url}} for url in pictures[:2]), QUESTION).json
    assert [medium["kind"] for medium in plain["timeviper"]["media"]] == ["image", "image"]
    many = [{"type": "image_url", "image_url": {"url": url}} for url in pictures * 3]
    (video,) = served.ask(*many, QUESTION).json["timeviper"]["media"]
    assert (video["kind"], video["frame_times"]) == ("video", list(range(15)))
    (video,) = served.ask(*many, QUESTION, mm_processor_kwargs={"fps": 2}).json["timeviper"]["media"]
    assert video["frame_times"][-1] == 7


def test_frame_settings_of_a_request(served: Served, clips: list[Path]) -> None:
    def times(**more: Any) -> list[float]:
        options = {key: more.pop(key) for key in ("mm_processor_kwargs", "media_io_kwargs") if key in more}
        reply = served.ask(video_part(clips[2].name, **more), QUESTION, max_tokens=1, **options)
        assert reply.status == 200, reply.body
        return reply.json["timeviper"]["media"][0]["frame_times"]

    assert len(times()) == 8  # 4 seconds, 2 a second
    assert len(times(fps=5)) == 20
    assert len(times(num_frames=3)) == len(times(nframes=3)) == len(times(max_frames=3)) == 3
    assert len(times(mm_processor_kwargs={"num_frames": 4})) == len(times(media_io_kwargs={"video": {"fps": 1}})) == 4
    part = times(video_start=1, video_end=2, fps=4)
    assert len(part) == 4
    assert 0 <= part[0] < part[-1] < 1
    for more, says in (
        ({"fps": 1000}, "from 0 to 30"),
        ({"max_frames": 65}, "from 1 to 64"),
        ({"nframes": 0}, "1 to 64"),
    ):
        reply = served.ask(video_part(clips[2].name, **more), QUESTION)
        assert (reply.status, says in reply.error) == (400, True), reply.body
    reply = served.ask(video_part(clips[2].name, video_start=3, video_end=2), QUESTION)
    assert (reply.status, reply.error) == (
        400,
        "messages[0].content[0].video_end must be later than video_start (3 s), got 2",
    )


def test_a_conversation_and_plain_text(served: Served, clips: list[Path]) -> None:
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [video_part(clips[0].name), {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And its shape?"},
    ]
    first = served.call("POST", "/v1/chat/completions", {"messages": messages}).json
    again = served.call("POST", "/v1/chat/completions", {"messages": messages}).json
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["choices"] == again["choices"]
    alone = served.call("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}).json
    assert alone["timeviper"]["frames"] == 0
    assert alone["choices"][0]["finish_reason"] in ("stop", "length")


# ---- states ----


def test_the_second_question_goes_by_the_state(served: Served, model: LoadedModel, clips: list[Path]) -> None:
    video = served.call("POST", "/v1/videos", {"path": clips[1].name}).json
    assert video["frames"] == 6
    assert video["state_bytes"] > 1000
    slices = served.server.engine.counts.slices
    for question in ("What colour?", "When?", "How many?"):
        found = served.ask(video_part(video["id"]), question).json
        assert found["choices"][0]["message"]["content"] == model.ask(question, clips[1]).text
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == video["tokens"] > 0
        assert found["timeviper"]["video"] == video["id"]
    assert served.server.engine.counts.slices == slices + 3
    salted = served.ask(video_part(video["id"]), QUESTION, cache_salt="mine").json
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "another salt shares no state"


def test_many_ask_at_once_about_a_video_that_is_read_once(
    model: LoadedModel, clips: list[Path], tmp_path: Path
) -> None:
    with serving(model, tmp_path, media_root=clips[0].parent) as served:
        found: list[int] = []

        def ask() -> None:
            found.append(
                served.ask(video_part(clips[0].name), QUESTION).json["usage"]["prompt_tokens_details"]["cached_tokens"]
            )

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(bool, found)) == [False] + [True] * 7
        assert (served.server.states.misses, served.server.states.hits) == (1, 7)


def test_a_watched_video_can_be_played_wherever_it_lies(served: Served, clips: list[Path], tmp_path: Path) -> None:
    """In ranges; until its file is another one."""
    path = clips[0].with_name("changing.mp4")
    path.write_bytes(clips[1].read_bytes())
    data = path.read_bytes()
    uploaded = served.upload(data, "mine.mp4").json["id"]
    for where in ({"path": "changing.mp4"}, {"file_id": uploaded}):
        id = served.call("POST", "/v1/videos", {**where, "cache_salt": "play"}).json["id"]
        whole = served.call("GET", f"/v1/videos/{id}/content")
        assert (whole.status, whole.headers["content-type"], whole.body == data) == (200, "video/mp4", True)
        part = served.call("GET", f"/v1/videos/{id}/content", headers={"Range": "bytes=100-199"})
        assert (part.status, part.body) == (206, data[100:200])
    path.write_bytes(clips[2].read_bytes())
    id = served.call("POST", "/v1/videos", {"path": "changing.mp4", "fps": 1}).json["id"]
    path.write_bytes(data)
    reply = served.call("GET", f"/v1/videos/{id}/content")
    assert (reply.status, "watch it again" in reply.error) == (404, True)
    path.unlink()
    assert served.call("GET", f"/v1/videos/{id}/content").status == 422


def test_a_watched_video_as_a_stream_of_its_progress(served: Served, clips: list[Path]) -> None:
    reply = served.call("POST", "/v1/videos", {"path": clips[2].name, "stream": True, "max_frames": 5})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *_, last, done = [line for line in reply.body.split(b"\n\n") if line.startswith(b"data: ")]
    assert (b'"frames":5' in last, done) == (True, b"data: [DONE]")
    listed = served.call("GET", "/v1/videos").json["data"]
    (mine,) = [video for video in listed if video["frames"] == 5]
    assert served.call("GET", f"/v1/videos/{mine['id']}").json == mine
    assert served.call("DELETE", f"/v1/videos/{mine['id']}").json["deleted"]
    assert served.call("GET", f"/v1/videos/{mine['id']}").status == 404


# ---- OpenAI's client ----


def test_openai_streams(served: Served, model: LoadedModel, clips: list[Path]) -> None:
    client, expected = served.client(), model.ask(QUESTION, clips[0]).text
    messages: Any = [{"role": "user", "content": [video_part(clips[0].name), {"type": "text", "text": QUESTION}]}]
    chunks = list(
        client.chat.completions.create(
            model="timeviper", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] in ("stop", "length")
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    always: Any = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        chunk.usage.completion_tokens
        for chunk in client.chat.completions.create(model="", messages=messages, stream=True, stream_options=always)
        if chunk.usage
    ]
    assert counts == sorted(counts)


def test_openai_asks_for_several_answers(served: Served, clips: list[Path]) -> None:
    client = served.client()
    messages: Any = [{"role": "user", "content": [video_part(clips[0].name), {"type": "text", "text": QUESTION}]}]
    options: dict[str, Any] = dict(model="timeviper", messages=messages, n=3, temperature=1.0, seed=7, logprobs=True)
    one, two = (client.chat.completions.create(**options, top_logprobs=2) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert len(set(texts)) > 1
    logs = one.choices[0].logprobs
    assert logs is not None
    assert logs.content
    assert len(logs.content[0].top_logprobs) == 2
    assert one.usage is not None
    assert one.usage.completion_tokens >= sum(len(c.logprobs.content or []) for c in one.choices if c.logprobs)
    streamed = {i: "" for i in range(3)}
    for chunk in client.chat.completions.create(**{**options, "logprobs": False}, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts
    stop = client.chat.completions.create(model="timeviper", messages=messages, stop=[texts_of(served, clips)[2:5]])
    assert stop.choices[0].finish_reason == "stop"
    assert stop.choices[0].message.content == texts_of(served, clips)[:2] or "" in (
        stop.choices[0].message.content or ""
    )


def texts_of(served: Served, clips: list[Path]) -> str:
    return served.ask(video_part(clips[0].name), QUESTION).json["choices"][0]["message"]["content"]


def test_openai_files_and_models(served: Served, clips: list[Path]) -> None:
    client = served.client()
    file = client.files.create(file=clips[0], purpose="user_data")
    assert client.files.retrieve(file.id).bytes == clips[0].stat().st_size
    assert client.files.content(file.id).read() == clips[0].read_bytes()
    assert file.id in [other.id for other in client.files.list()]
    (card,) = client.models.list()
    assert client.models.retrieve(card.id).id == card.id
    assert client.files.delete(file.id).deleted
    assert served.call("GET", f"/v1/files/{file.id}").status == 404


# ---- clients that go ----


def test_fifty_clients_that_leave_free_their_rows(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.server.engine
    monkeypatch.setitem(engine.answers.tokenizer.__dict__, "stop_ids", [])  # answers that go on and on
    asked = {"messages": [{"role": "user", "content": "Tell me"}], "stream": True, "max_tokens": 900, "temperature": 2}
    body = json.dumps(asked).encode()
    links = []
    for _ in range(50):
        link = HTTPConnection("127.0.0.1", served.port, timeout=60)
        link.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        links.append(link)
    replies = [link.getresponse() for link in links]
    for reply in replies:
        reply.read(80)
    aborted, requests = engine.counts.aborted, engine.counts.requests
    waited(lambda: engine.rows == 50)
    for link, reply in zip(links, replies):
        reply.close()
        link.close()
    waited(lambda: engine.rows == 0)
    assert engine.counts.requests == requests
    assert engine.counts.aborted - aborted == 50
    assert engine.held == 0
    assert served.call("GET", "/metrics").body.count(b"timeviper_rows 0") == 1


def waited(holds: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_full_queue_says_when_to_come_again(model: LoadedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, queue=1, prompts=1) as served:
        engine = served.server.engine
        engine.check_room()
        from timeviper.serving.jobs import Job
        from timeviper.serving.writing import Style

        blocked = [True]
        jobs = [Job(lambda _: None, Style(1), 1, ready=lambda: not blocked[0]) for _ in range(2)]
        engine.submit(jobs[0])
        waited(lambda: engine.reading == 1)
        engine.submit(jobs[1])
        reply = served.ask("Hello")
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json["error"]["type"] == "rate_limit_error"
        for job in jobs:
            engine.abort(job)
        waited(lambda: engine.reading == engine.waiting == 0)
        assert served.ask("Hello", max_tokens=2).status == 200


def test_a_stream_lives_while_a_prompt_is_read(model: LoadedModel, clips: list[Path], tmp_path: Path) -> None:
    with serving(model, tmp_path, media_root=clips[0].parent, keep_alive=0.05) as served:
        engine = served.server.engine
        plain, open_now = engine._admit, threading.Event()
        engine._admit = lambda: plain() if open_now.is_set() else None  # pyright: ignore[reportAttributeAccessIssue]
        threading.Timer(1.5, lambda: (open_now.set(), engine.wake())).start()
        body = served.ask(video_part(clips[0].name), QUESTION, stream=True).body
        assert body.count(b": waiting\n\n") >= 3
        assert body.endswith(b"data: [DONE]\n\n")
