"""What strangers send beside media: text, keys, states, forms. Each is refused with its status, and reaches nothing."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from served import Served, form, serving, video_part

from timeviper.errors import ConfigError
from timeviper.inference.ask import LoadedModel
from timeviper.serving.settings import ServeSettings

QUESTION = "What colour is the ring?"


# ---- text ----


def test_control_words_typed_by_a_user_are_text(served: Served, model: LoadedModel) -> None:
    tokenizer = model.tokenizer
    specials = [tokenizer.decode([i], skip_special=False) for i in sorted(tokenizer.special_ids)]
    for word in (*specials, "<video>", "<image>", "</s>", "<|im_end|>", "[INST]"):
        text = f"a {word} b"
        found = served.ask(video_part("clip.mp4"), text)
        assert found.status == 200, (word, found.body)
        plain = served.ask(video_part("clip.mp4"), "a ")
        more = len(tokenizer.encode("\n" + text)) - len(tokenizer.encode("\na "))
        assert found.json["timeviper"]["tokens"]["prompt"] == plain.json["timeviper"]["tokens"]["prompt"] + more, word
        assert found.json["timeviper"]["tokens"]["vision"] == plain.json["timeviper"]["tokens"]["vision"]


# ---- keys, tenants, states ----


def test_every_path_asks_for_the_key(model: LoadedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, keys=("first-key-123", "second-key-123")) as served:
        paths = [
            "/",
            "/page.js",
            "/page.css",
            "/health",
            "/metrics",
            "/v1/models",
            "/v1/files",
            "/v1/videos",
            "/nowhere",
        ]
        for path in paths:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic !!"},
                {"Authorization": "x"},
            ):
                reply = served.call("GET", path, headers=headers)
                assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key"), path
                assert reply.headers["www-authenticate"].startswith("Basic")
        assert served.call("POST", "/v1/chat/completions", {}).status == 401
        assert served.call("GET", "/", headers={"Authorization": "Basic eDpmaXJzdC1rZXktMTIz"}).status == 200
        with served.client("first-key-123") as first, served.client("second-key-123") as second:
            file = first.files.create(file=("a.mp4", b"abc"), purpose="user_data")
            assert [f.id for f in first.files.list()] == [file.id]
            assert [f.id for f in second.files.list()] == []
            with pytest.raises(Exception, match="there is no such file"):
                second.files.retrieve(file.id)


def test_tenants_share_no_state(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, keys=("first-key-123", "second-key-123"), media_root=media) as served:
        ids = []
        for key in ("first-key-123", "second-key-123"):
            headers = {"Authorization": f"Bearer {key}"}
            video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}, headers).json
            ids.append(video["id"])
            assert served.call("GET", f"/v1/videos/{ids[0]}", headers=headers).status == (200 if len(ids) == 1 else 404)
        assert ids[0] != ids[1]
        assert served.server.states.misses + served.server.states.hits == 0


@pytest.mark.parametrize("rubbish", [b"", b"\x80\x04\x95pickle", b"\xff" * 4000])
def test_a_state_that_somebody_has_replaced_is_made_again(
    model: LoadedModel, media: Path, tmp_path: Path, rubbish: bytes
) -> None:
    with serving(model, tmp_path, media_root=media) as served:
        video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json["id"]
        expected = served.ask(video_part(video), QUESTION).json["choices"]
        (path,) = tmp_path.rglob("state.safetensors")
        path.write_bytes(rubbish)
        served.server.states.drop(video)
        found = served.ask(video_part(video), QUESTION).json
        assert found["choices"] == expected
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_others_cannot_reach_a_server_without_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="others could reach the model: give --key-file"):
            ServeSettings(tmp_path, host=host).check()
    ServeSettings(tmp_path, host="0.0.0.0", keys=("long-enough",)).check()
    with pytest.raises(ConfigError, match="8 characters or more"):
        ServeSettings(tmp_path, keys=("short",)).check()


def test_pages_of_other_sites_may_not_ask(served: Served) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
    ):
        reply = served.call("POST", "/v1/chat/completions", {"messages": []}, headers)
        assert reply.status == 403, headers
    reply = served.call("GET", "/v1/models", headers={"Origin": f"http://127.0.0.1:{served.port}"})
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_what_the_page_may_load(served: Served) -> None:
    for path in ("/", "/page.js", "/page.css", "/v1/models"):
        reply = served.call("GET", path)
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    page = served.call("GET", "/").body.decode()
    assert "<script>" not in page
    assert "http" not in page.replace("http-equiv", "")
    script = served.call("GET", "/page.js").body.decode()
    assert not any(word in script for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval("))


def test_a_stored_file_is_nothing_that_a_browser_runs(served: Served) -> None:
    name = '<img src=x onerror=alert(1)>".html'
    file = served.upload(b"<script>alert(1)</script>", name.replace('"', "%22")).json
    reply = served.call("GET", f"/v1/files/{file['id']}/content")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in reply.headers["content-security-policy"]


# ---- forms ----


def test_an_upload_that_is_cut_off_leaves_nothing(served: Served) -> None:
    kind, body = form(b"x" * 200_000, "clip.mp4")
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    before = served.call("GET", "/v1/files").json["data"]
    with socket.create_connection(("127.0.0.1", served.port)) as link:
        link.sendall(head.encode() + body[:100_000])
    cut = served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=body[:-30])
    assert (cut.status, cut.error) == (400, "the form is cut off, or has no field named file")
    assert served.call("GET", "/v1/files").json["data"] == before
    until = time.monotonic() + 10
    while list(served.server.settings.store.rglob("incoming-*")):
        assert time.monotonic() < until


def test_forms_that_are_none(served: Served) -> None:
    kind, body = form(b"", "clip.mp4")
    assert served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=body).error == "the file is empty"
    assert served.call("POST", "/v1/files", {"file": "x"}).status == 415
    assert served.call("POST", "/v1/files", headers={"Content-Type": "multipart/form-data"}, raw=b"x").status == 415
    other = served.call(
        "POST", "/v1/files", headers={"Content-Type": "multipart/form-data; boundary=x"}, raw=b"rubbish"
    )
    assert other.status == 400
    twice = body.replace(b"--\r\n", b"\r\n" + body)
    assert served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=twice).status == 400


def test_a_file_that_is_too_large(model: LoadedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, max_upload=1000, max_store=1500) as served:
        assert served.upload(b"x" * 1001).status == 413
        assert served.upload(b"x" * 3_000_000).status == 413
        assert served.upload(b"x" * 1000).status == 200
        assert served.upload(b"y" * 900).status == 413, "what is left of the store"
        assert served.upload(b"y" * 500).status == 200
        assert served.upload(b"z").status == 507


def test_weights_are_asked_for_by_name(served: Served) -> None:
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]}
    reply = served.call("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.json["error"]["param"]) == (404, "model")
    assert served.call("GET", "/v1/models/gpt-9").status == 404


def test_a_disk_that_is_full(model: LoadedModel, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state answers from memory, and is not said to be kept; an upload is refused, and leaves nothing."""
    from timeviper.inference import video_state

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with serving(model, tmp_path, media_root=media) as served:
        monkeypatch.setattr(video_state, "write_state", full)
        video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json
        assert video["saved"] is False
        assert served.call("GET", "/v1/videos").json["data"] == []
        found = served.ask(video_part("clip.mp4"), QUESTION).json
        assert found["timeviper"]["video"] == video["id"]
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == video["tokens"]
        monkeypatch.setattr("timeviper.serving.store.put", full)
        reply = served.upload(b"x" * 100)
        assert (reply.status, reply.json["error"]["code"]) == (507, "storage_full")
        assert list((tmp_path / "open/files").iterdir()) == []


def test_two_who_watch_the_same_video_at_once(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, media_root=media) as served:
        found: list[Any] = []

        def watch() -> None:
            found.append(served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json)

        threads = [threading.Thread(target=watch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({video["id"] for video in found}) == 1
        assert len(served.call("GET", "/v1/videos").json["data"]) == 1
        assert not list(tmp_path.rglob("*.tmp"))
