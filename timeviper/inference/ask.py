"""One question about one file: the same frames, prompt and transfer positions as in training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.reader import build_pack
from timeviper.inference.generate import generate_pack
from timeviper.kernels import dispatch
from timeviper.weights.export import find_export, load_export, pick_device


def ask(
    run: str | Path, video: str | Path, question: str, overrides: Sequence[str] = (), *, stream: bool = True
) -> dict:
    """Answer a question about any file that PyAV opens; `stream` prints the answer as it is written.

    Returns question, answer, frame times in seconds, and the vision tokens left after each transfer.
    Raises VideoError for an unreadable file, ValueError for a question longer than the context.
    """
    model, recipe, tokenizer = load_export(find_export(run), overrides)
    dispatch.configure(**vars(recipe.model.kernel))
    form = pack_format(recipe)
    frames = read_video(video, form.image_size, recipe.data.frames)
    messages = [{"role": "user", "content": question}]
    pack = build_pack(tokenizer, form, messages, [frames], prompt_only=True, key=str(video))
    device = pick_device()
    decoder = tokenizer.stream()

    def show(ids: list[int]) -> None:
        sys.stdout.write(decoder.step(ids[0]))
        sys.stdout.flush()

    kept: dict[str, list[int]] = {}
    with torch.inference_mode():
        ids = generate_pack(
            model.to(device),
            pack.to(device),
            max_new_tokens=recipe.eval.max_new_tokens,
            stop_ids=tokenizer.stop_ids,
            on_token=show if stream else None,
            kept=kept,
        )[0]
    if stream:
        print(flush=True)
    return {
        "question": question,
        "answer": tokenizer.decode(ids.tolist()),
        "video": str(video),
        "duration": frames.duration,
        "frame_times": [round(float(t), 3) for t in frames.times],
        "tokens": {
            "prompt": pack.lengths[0],
            "vision": pack.num_vision,
            "kept": {stage: counts[0] for stage, counts in kept.items()},
        },
    }
