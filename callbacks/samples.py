"""A table of held-out questions with frames, the right answer and the model's, after each validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from timeviper.callbacks.held_out import apart_from_training, fixed_plans, read_share
from timeviper.config import ParallelConfig
from timeviper.config.callbacks import SamplesConfig
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.world.render import encode_image
from timeviper.inference.lockstep import answer_in_step
from timeviper.inference.metrics import is_right
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack
from timeviper.tokenizer import Tokenizer

SHOWN_HEIGHT = 96  # pixels; smaller frames are enlarged by whole factors


@dataclass
class Row:
    """One sample as people see it."""

    key: str
    type: str
    question: str
    right: str
    times: list[float]
    """Seconds of the frames in the strip."""
    strip: bytes
    """The frames side by side, a PNG file; empty where they came as stored features."""
    size: tuple[int, int]
    """Height and width of the strip in pixels."""


class SampleTable(pl.Callback):
    """Writes `<run>/logs/samples/step=N.md` with its pictures beside it, and the same into TensorBoard.

    Answers are written greedily, token by token, by all ranks in step: each answers its share of the samples.
    """

    def __init__(
        self,
        options: SamplesConfig,
        parallel: ParallelConfig,
        run: Path,
        pause: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """pause: entered while it writes."""
        self.options, self.pause = options, pause
        self.dtype = getattr(torch, parallel.param_dtype)
        self.folder = run / "logs" / "samples"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or pl_module.validation_cut:
            return
        model, device = cast(TimeViper, pl_module.model), trainer.strategy.root_device
        with self.pause(), apart_from_training(model, device):
            data = cast(VideoDataModule, cast(Any, trainer).datamodule)
            plans, val = fixed_plans(data, self.options.samples), data.val_reader
            tokenizer = val.tokenizer
            reader = PackReader(tokenizer, val.form, val.classes, prompt_only=True, cache=val.cache)
            mine = []
            for pack in read_share(reader, plans, trainer.global_rank, trainer.world_size):
                (ids,) = answer_in_step(
                    model,
                    pack.to(device),
                    self.options.max_new_tokens,
                    stop_ids=tokenizer.stop_ids,
                    dtype=self.dtype,
                    world=trainer.world_size,
                )
                mine.append((describe(pack, tokenizer, self.options.frames), tokenizer.decode(ids.tolist())))
            rows = [(row, written) for row, written in _dealt(mine, trainer.world_size) if row.key]
        if trainer.is_global_zero:
            self._write(rows, trainer.global_step)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    log_rows(logger.experiment, rows, trainer.global_step)

    def _write(self, rows: list[tuple[Row, str]], step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for i, (row, _) in enumerate(rows):
            if row.strip:
                (self.folder / f"{i}.png").write_bytes(row.strip)
        text = f"# Step {step}: held-out samples\n\n{as_markdown(rows, pictures=True)}\n"
        (self.folder / f"step={step}.md").write_text(text, encoding="utf-8")


def _dealt(mine: list[Any], world: int) -> list[Any]:
    """What all ranks have, in the order of the samples, which were dealt to them one by one."""
    if world == 1:
        return mine
    every: list[Any] = [None] * world
    dist.all_gather_object(every, mine)
    return [share[i] for i in range(len(mine)) for share in every]


def describe(pack: Pack, tokenizer: Tokenizer, frames: int) -> Row:
    """A pack of one sequence for people; the key of one that could not be read is empty."""
    question = tokenizer.decode(pack.ids[pack.kind != Kind.VISION].tolist())
    chosen = torch.linspace(0, max(pack.num_frames - 1, 0), min(frames, pack.num_frames)).round().long()
    times = [float(t) for t in pack.frame_times[chosen]]
    key, type, right = (names[0] if names else "" for names in (pack.keys, pack.types, pack.answers))
    if len(pack.frames) < pack.num_frames or not len(chosen):
        return Row(key, type, question, right, times, b"", (0, 0))
    strip = frame_strip(pack.frames[chosen])
    return Row(key, type, question, right, times, encode_image(strip.numpy(), "png"), (strip.shape[0], strip.shape[1]))


def frame_strip(frames: Tensor) -> Tensor:
    """uint8 `[F, 3, H, W]` -> `[H', F * W', 3]`: side by side with a white line between, small frames enlarged."""
    factor = max(1, -(-SHOWN_HEIGHT // frames.shape[-2]))
    large = frames.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    large[:, :, :, -1] = 255
    return large.permute(2, 0, 3, 1).flatten(1, 2).contiguous()


def as_markdown(rows: Sequence[tuple[Row, str]], pictures: bool = False) -> str:
    """A table of the rows with what the model wrote; `pictures`: with links to `<i>.png`."""
    titles = ["sample", "question", "right answer", "the model's", "", *(["frames"] if pictures else [])]
    lines = [titles, ["---"] * len(titles)]
    for i, (row, written) in enumerate(rows):
        verdict = "right" if is_right(row.type, written, row.right) else "wrong"
        cells = [f"{row.key} ({row.type})" if row.type else row.key, row.question, row.right, written, verdict]
        if pictures:
            times = ", ".join(f"{t:.1f}" for t in row.times)
            cells.append((f"![{i}]({i}.png) " if row.strip else "") + f"at {times} s")
        lines.append([_cell(c) for c in cells[:5]] + cells[5:])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text in a cell of a table: no line breaks, and nothing that Markdown would read as its own."""
    text = " ".join(text.split())
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def log_rows(writer: Any, rows: Sequence[tuple[Row, str]], step: int) -> None:
    """Table and strips into TensorBoard. The pictures are PNG already: `add_image` would want PIL to make them."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    writer.add_text("samples/table", as_markdown(rows), step)
    for i, (row, _) in enumerate(rows):
        if row.strip:
            height, width = row.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=row.strip)
            value = Summary.Value(tag=f"samples/{i}", image=image)
            writer._get_file_writer().add_summary(Summary(value=[value]), step)
    writer.flush()
