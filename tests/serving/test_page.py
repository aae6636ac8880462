"""The page in a browser: a clip is uploaded, asked about, its times clicked, asked about again. Skipped without one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from served import Served, serving
from video_helpers import write_clip

from timeviper.inference.ask import load
from timeviper.serving.engine import Engine

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
FOCUSED = "document.activeElement.id || document.activeElement.parentElement?.parentElement?.id"
SHOTS = os.environ.get("TIMEVIPER_SHOTS", "")  # folder for pictures of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as made:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            opened = made.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        except Exception as error:
            pytest.skip(f"no browser: {str(error)[:80]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = load(random_run(tmp_path_factory.mktemp("run")), device="cpu", overrides=["eval.max_new_tokens=64"])
    with serving(model, tmp_path_factory.mktemp("store"), media_root=clip.parent) as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    try:
        return write_clip(folder / "a <b>clip.webm", 80, codec="libvpx", size=(160, 120))
    except Exception:
        return write_clip(folder / "a <b>clip.mp4", 80, size=(160, 120))


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.errors = []
    opened.on("console", lambda said: said.type == "error" and opened.errors.append(said.text))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.goto(served.url)
    yield opened
    assert opened.errors == []
    context.close()


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def says(monkeypatch: pytest.MonkeyPatch, served: Served, text: str) -> None:
    """Let the model answer this, whatever it is asked."""
    from timeviper.serving import writing

    tokenizer = served.server.engine.answers.tokenizer
    ids = [*tokenizer.encode(text), tokenizer.stop_ids[0]]
    monkeypatch.setattr(writing.Writer, "choose", lambda self, *_: ids[min(self.count, len(ids) - 1)])
    assert isinstance(served.server.engine, Engine)


def until(page: Any, holds: str, timeout: float = 30_000) -> None:
    """Playwright's own way of waiting is an eval, which the page's policy forbids."""
    end = time.monotonic() + timeout / 1e3
    while not page.evaluate(holds):
        assert time.monotonic() < end, holds
        page.wait_for_timeout(20)


def asked(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_upload_ask_seek_ask_again(page: Any, served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, served, "a ring from 2.0 to 5.0 seconds, then at 6.5 s <i>more</i>, 0:07")
    page.set_input_files("#file", str(clip))
    page.wait_for_selector("#question:not([disabled])", timeout=30_000)
    status = page.inner_text("#status")
    assert "a <b>clip" in status
    assert "8 frames watched" in status
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.locator("#strip li").count() == 8
    asked(page, "What <b>happens</b>?")
    page.wait_for_selector("article .quiet:not(:empty)", timeout=30_000)
    assert page.inner_text("article h3") == "What <b>happens</b>?"
    assert "<i>more</i>" in page.inner_text("article .answer")
    times = page.locator("article .time")
    assert [times.nth(i).inner_text() for i in range(times.count())] == ["2.0", "5.0", "6.5", "0:07"]
    assert "tokens came from the kept state" in page.inner_text("article .quiet")
    assert "frames left something" in page.inner_text("#strip-note")
    assert page.locator("#strip .kept").count() >= 1
    until(page, "document.querySelector('#player').readyState >= 1")
    times.nth(1).click()
    until(page, "Math.abs(document.querySelector('#player').currentTime - 5) < 0.05")
    page.locator("#strip button").nth(2).click()
    until(page, "Math.abs(document.querySelector('#player').currentTime - 2.5) < 0.2")
    until(page, "[...document.querySelectorAll('#strip canvas')].every((c) => c.drawn)", timeout=20_000)
    shoot(page, "wide")
    page.check("#follow")
    asked(page, "And then?")
    page.wait_for_selector("article:nth-of-type(2) .quiet:not(:empty)", timeout=30_000)
    assert page.locator("article").count() == 2
    assert (served.server.states.hits, served.server.states.misses) == (2, 0), "the clip was read once, when it came"
    assert page.locator("b, i").count() == 0, "what people and models write is text"


def test_a_phone(browser: Any, served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, served, "red from 1.0 to 2.0 seconds")
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(served.url)
    page.set_input_files("#file", str(clip))
    page.wait_for_selector("#question:not([disabled])", timeout=30_000)
    asked(page, "What colour is the ring that appears in the middle of the picture?")
    page.wait_for_selector("article .quiet:not(:empty)", timeout=30_000)
    shoot(page, "phone")
    wide = page.evaluate(
        """[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 &&
           !e.closest('#strip')).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), wide
    small = page.evaluate(
        """[...document.querySelectorAll('button:not(.time)')]
           .filter((b) => b.offsetParent && b.offsetHeight < 40).length"""
    )
    assert small == 0, "buttons that a thumb hits"
    context.close()


def test_by_keyboard_alone_and_for_a_screen_reader(page: Any, served: Served, clip: Path) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.set_input_files("#file", str(clip))
    page.wait_for_selector("#question:not([disabled])", timeout=30_000)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, progress')].filter((e) =>
           !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.get_attribute("#log", "aria-live") == "polite"
    assert page.get_attribute("#status", "role") == "status"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(FOCUSED))
    assert {"file", "player", "strip", "question", "send", "follow"} <= reached


def test_what_cannot_be_read_is_said(page: Any, served: Served, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all")
    page.set_input_files("#file", str(bad))
    until(page, "document.querySelector('#status').textContent.includes('It did not work')", timeout=30_000)
    assert "bad.mp4: it cannot be read as a video or picture" in page.inner_text("#status")
    shoot(page, "error")
    page.errors[:] = [error for error in page.errors if "422" not in error]  # the browser's own note of the reply


def test_a_video_of_before_is_there_after_a_reload(page: Any, served: Served, clip: Path) -> None:
    page.wait_for_selector("#earlier option:nth-child(2)", state="attached", timeout=10_000)
    page.select_option("#earlier", index=1)
    page.wait_for_selector("#question:not([disabled])", timeout=10_000)
    until(page, "document.querySelector('#player').readyState >= 1")
    asked(page, "What?")
    page.wait_for_selector("article .quiet:not(:empty)", timeout=30_000)
    assert "kept state" in page.inner_text("article .quiet")


def test_a_video_of_the_media_root_has_a_player(page: Any, served: Served, clip: Path) -> None:
    served.call("POST", "/v1/videos", {"path": clip.name, "fps": 0.5})
    page.reload()
    page.wait_for_selector("#earlier option:nth-child(3)", state="attached", timeout=10_000)
    page.select_option("#earlier", index=1)  # the newest
    page.wait_for_selector("#question:not([disabled])", timeout=10_000)
    assert page.inner_text("#status").startswith(f"{clip.name}: ")
    until(page, "document.querySelector('#player').readyState >= 1")


def test_a_stopped_answer(page: Any, served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.server.engine
    monkeypatch.setitem(engine.answers.tokenizer.__dict__, "stop_ids", [])
    monkeypatch.setattr(served.server.model.recipe.eval, "max_new_tokens", 1000)
    page.wait_for_selector("#earlier option:nth-child(2)", state="attached", timeout=10_000)
    page.select_option("#earlier", index=1)
    asked(page, "Tell me everything.")
    until(page, "document.querySelector('article .answer')?.textContent.length > 20", timeout=30_000)
    page.click("#stop")
    until(page, "document.querySelector('article .quiet').textContent === 'Stopped.'")
    for _ in range(200):
        if engine.rows == 0:
            break
        page.wait_for_timeout(20)
    assert engine.rows == 0
