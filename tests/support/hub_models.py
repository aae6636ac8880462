"""Folders of whole models, loaded by transformers in this process, their code in a place that goes away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def code_in(folder: Path) -> Iterator[None]:
    """transformers keeps the code of folders there, not in the home of who runs the tests."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        yield


def load_folder(folder: Path, **options: Any) -> tuple[Any, Any]:
    """(model, processor), within `code_in`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **options)
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def asked(processor: Any, video: Any, question: str, **options: Any) -> Any:
    """The inputs of a question about a video."""
    parts = [{"type": "video", "video": str(video)}, {"type": "text", "text": question}]
    talk = [{"role": "user", "content": parts}]
    return processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
    )


def written(model: Any, inputs: Any, **options: Any) -> list[list[int]]:
    """The new ids of each row."""
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
