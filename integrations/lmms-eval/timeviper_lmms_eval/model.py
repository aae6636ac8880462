"""The two kinds of model that lmms-eval knows: simple, where a task gives text and media, and chat, where it gives
messages."""

from __future__ import annotations

import os
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from timeviper_lmms_eval.door import Door

LONGEST = 64  # tokens of an answer, where a task says nothing
QUESTIONS = ("question", "query", "caption")  # fields of a document that say what is asked


class TimeViper(lmms):
    """Arguments (`--model_args`): pretrained (a run folder), command, frames, overrides, bare (the question alone, as
    a document has it), on_error (stop or empty)."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        command: str = "timeviper",
        frames: str = "run",
        overrides: str = "",
        bare: Any = False,
        on_error: str = "stop",
        **ignored: Any,
    ) -> None:
        super().__init__()
        if on_error not in ("stop", "empty"):
            raise ValueError(f"on_error={on_error}: it is stop or empty")
        if unknown := set(ignored) - {"batch_size", "max_batch_size", "device", "system_prompt"}:
            raise ValueError(f"model_args that there are not: {', '.join(sorted(unknown))}")
        self.on_error, self.failed = on_error, 0
        self.bare = str(bare).lower() in ("1", "true", "yes")
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.door = Door(command, pretrained, frames, overrides)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked = [self._bared(request, self.asked(request)) for request in requests]
        replies = [""] * len(asked)
        order = sorted(range(len(asked)), key=lambda i: (asked[i]["video"], asked[i].get("start") or 0.0))
        for i in tqdm(order, disable=self._rank != 0, desc="timeviper"):
            found = self.door.ask(**asked[i])
            if found["error"]:
                self._fails(asked[i], found["error"])
            replies[i] = _until(found["reply"], _settings(requests[i]).get("until"))
        if self.failed:
            logger.warning(
                f"timeviper: {self.failed} of {len(asked)} questions could not be answered and count as empty"
            )
        return replies

    def asked(self, request: Instance) -> dict[str, Any]:
        context, settings, doc_to_visual, doc_id, task, split = request.args
        media = doc_to_visual(self.task_dict[task][split][doc_id])
        return {"video": _video(media, task), "text": context.strip(), "max_new_tokens": _longest(settings)}

    def _bared(self, request: Instance, asked: dict[str, Any]) -> dict[str, Any]:
        """Without options and instructions, if that is wished."""
        if not self.bare:
            return asked
        doc_id, task, split = request.args[-3:]
        doc = self.task_dict[task][split][doc_id]
        question = next((str(doc[name]) for name in QUESTIONS if doc.get(name)), None)
        if question is None:
            raise ValueError(f"{task} has none of {', '.join(QUESTIONS)}: bare=yes cannot tell what is asked")
        return {**asked, "text": question, "system": ""}

    def _fails(self, asked: dict[str, Any], reason: str) -> None:
        if self.on_error == "stop":
            raise RuntimeError(f"{asked['video']}: {reason} (on_error=empty goes on with an empty answer)")
        self.failed += 1

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("TimeViper answers by generation; tasks that compare likelihoods cannot ask it")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("TimeViper is asked once a question; tasks of several rounds cannot ask it")


class TimeViperChat(TimeViper):
    """The same, asked in messages."""

    is_simple = False

    def asked(self, request: Instance) -> dict[str, Any]:
        _, doc_to_messages, settings, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        media, texts, system = [], [], []
        for message in messages:
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    (system if message["role"] == "system" else texts).append(part["text"])
                else:
                    media.append(part)
        told: dict[str, Any] = {"video": _video([part["url"] for part in media], task)}
        told |= {name: part[key] for part in media for name, key in _CLIP if part.get(key) is not None}
        text = "\n".join(texts).strip()
        return told | {"text": text, "system": "\n".join(system), "max_new_tokens": _longest(settings)}


_CLIP = (("start", "start_time"), ("end", "end_time"))


def _video(media: Any, task: str) -> str:
    """The path of the only video or picture."""
    if not isinstance(media, list | tuple) or len(media) != 1 or not isinstance(media[0], str):
        raise ValueError(f"{task} gives other media than one file: timeviper takes the path of one video or picture")
    return os.path.abspath(media[0])


def _settings(request: Instance) -> dict[str, Any]:
    return next(one for one in request.args if isinstance(one, dict))


def _longest(settings: dict[str, Any]) -> int:
    if settings.get("temperature") or settings.get("do_sample"):
        logger.warning("timeviper answers greedily; temperature and do_sample of the task are not obeyed")
    return int(settings.get("max_new_tokens", LONGEST))


def _until(reply: str, until: Any) -> str:
    for mark in [until] if isinstance(until, str) else until or []:
        reply = reply.split(mark)[0] if mark else reply
    return reply.strip()
