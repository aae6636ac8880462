"""The model that VLMEvalKit asks: a path of a video and texts in, a text out."""

from __future__ import annotations

import os
from typing import Any

from vlmeval.vlm.base import BaseModel

from timeviper_vlmevalkit.door import Door

LONGEST = 256  # tokens of an answer: VLMEvalKit names none
UNSET = 0.5  # a number of frames, and frames a second, that no dataset has
FAILED = "Failed to obtain answer via API."  # what VLMEvalKit counts as failed, and asks again


class TimeViper(BaseModel):
    """frames: a protocol of `timeviper bench run`, or dataset: N frames or F a second, as the dataset's name says.
    bare: the question alone, without options and instructions (only of datasets of N frames, as VLMEvalKit allows it).
    on_error: stop, or skip: the question counts as failed, and is asked again at the next start."""

    is_api = False
    INTERLEAVE = False
    VIDEO_LLM = True

    def __init__(
        self,
        run: str,
        command: str = "timeviper",
        frames: str = "dataset",
        overrides: str = "",
        max_new_tokens: int = LONGEST,
        bare: bool = False,
        on_error: str = "stop",
    ) -> None:
        super().__init__()
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error={on_error}: it is stop or skip")
        self.fixed, self.max_new_tokens, self.bare, self.on_error = frames, max_new_tokens, bare, on_error
        self.nframe = self.fps = None
        self.door = Door(command, run, "run" if frames == "dataset" else frames, overrides)

    # VLMEvalKit sets these two to those of the dataset, one of them to None, where they are above 0 and differ.
    @property
    def nframe(self) -> float:
        return self._nframe or UNSET

    @nframe.setter
    def nframe(self, count: float | None) -> None:
        self._nframe = count

    @property
    def fps(self) -> float:
        return self._fps or UNSET

    @fps.setter
    def fps(self, rate: float | None) -> None:
        self._fps = rate

    @property
    def protocol(self) -> str:
        """What is asked for: VLMEvalKit takes frames at i / (N + 1), or at i / F seconds."""
        if self.fixed != "dataset":
            return self.fixed
        if self._nframe:
            return f"vlmeval:{int(self._nframe)}"
        return f"first:{self._fps:g}:1000000" if self._fps else "run"

    def use_custom_prompt(self, dataset: str) -> bool:
        return self.bare

    def build_prompt(self, line: Any, dataset: Any, video_llm: bool = True) -> list[dict[str, str]]:
        """The dataset's message, of whose texts the question is left."""
        media = [part for part in dataset.build_prompt(line, video_llm) if part["type"] != "text"]
        return [*media, {"type": "text", "value": str(line["question"])}]

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        videos = [part["value"] for part in message if part["type"] != "text"]
        if len(videos) != 1:
            raise ValueError(f"{dataset} gives {len(videos)} media: timeviper takes the path of one video or picture")
        texts: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
        for part in message:
            if part["type"] == "text":
                texts[part.get("role", "user")].append(part["value"])
        found = self.door.ask(
            video=os.path.abspath(videos[0]),
            text="\n".join(text for text in texts["user"] if text).strip(),
            system="\n".join(texts["system"]).strip(),
            prefix="".join(texts["assistant"]),
            max_new_tokens=self.max_new_tokens,
            frames=self.protocol,
        )
        if found["error"]:
            if self.on_error == "stop":
                raise RuntimeError(f"{videos[0]}: {found['error']} (--on-error skip goes on with the next question)")
            return f"{FAILED} {found['error']}"
        return found["reply"].strip()
