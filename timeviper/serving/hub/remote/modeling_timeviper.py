"""TimeViper as a model of transformers: the same modules under the same names, with `generate`.

Batches are padded rows for transformers and one packed stream for the decoder, which knows no padding. What a prompt
leaves behind, the states of all blocks, goes through `generate` as `past_key_values`.
Letters: B rows, L columns, F frames of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from timeviper.inference.generate import Part, read_prompt
from timeviper.inference.prefill import Prefilled
from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.model.state import DecoderState
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack
from timeviper.serving.hub.remote.configuration_timeviper import TimeViperConfig

# Gains, gates, decays and steps have few digits or none in bfloat16, and little weight.
WIDE = [
    "decoder.blocks.*.ssm.*",
    "decoder.blocks.*.norm.weight",
    "decoder.norm_f.weight",
    "transv.*.norm.weight",
    "transv.*.alpha",
]


@dataclass
class TimeViperOutput(ModelOutput):
    loss: Tensor | None = None
    """Mean over the labels, where they are given."""
    logits: Tensor | None = None
    """`[B, L, V]`, or `[B, 1, V]` after each row. Zeros where there is no token (padding), and at vision tokens that
    TransV took away."""
    past_key_values: DecoderState | None = None
    kept: dict[str, list[int]] | None = None
    """Vision tokens of each row that are left after each TransV stage, by its name."""


@dataclass
class Row:
    """A row of a batch without its padding."""

    ids: Tensor
    kind: Tensor
    """`[n]` each, as in a `Pack`."""
    frames: Tensor
    """uint8 `[f, 3, S, S]`"""
    seconds: Tensor
    """float64 `[f]`, on the host."""
    columns: Tensor
    """int64 `[n]`: where in the row each token stands."""

    def parts(self, count: int) -> Iterator[Part]:
        """Frames, so many at a time."""
        return iter(self.frames.split(count) if len(self.frames) else ())

    def pack(self, labels: Tensor | None = None) -> Pack:
        shifted = torch.full_like(self.ids, IGNORE)
        if labels is not None:
            shifted[:-1] = labels[1:]
        size = [len(self.ids)], [len(self.frames)]
        return Pack(self.ids, shifted, self.kind, size[0], self.frames, self.seconds, size[1])


class TimeViperForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = TimeViperConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]  # noqa: RUF012
    _is_stateful = True
    _supports_sdpa = True
    _no_split_modules = ["TimeViper"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = WIDE

    def __init__(self, config: TimeViperConfig) -> None:
        super().__init__(config)
        self.settings = config.model_settings
        assert config.recipe is not None
        self.model = TimeViper(self.settings, config.recipe["chat"]["time"] == "tokens")
        self.tokens_per_piece: int = config.recipe["eval"]["tokens_per_piece"]
        """Longer prompts go through the model so many tokens at a time; 0: whole."""
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the states are this model's own

    def _init_weights(self, module: nn.Module) -> None:
        """The modules draw their values when they are made; what no file holds is filled again after loading."""
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()  # pyright: ignore[reportCallIssue]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.decoder.embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_kinds: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        frame_counts: Tensor | None = None,
        frame_times: Tensor | None = None,
        past_key_values: DecoderState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> TimeViperOutput | tuple[Any, ...]:
        """A batch as the processor makes it, or tokens behind `past_key_values`.

        input_ids, attention_mask (1 where there is a token), token_kinds (0 before the frames, 1 vision, 2 text behind
        them, 3 answers) `[B, L]`; pixel_values_videos uint8 `[F, 3, S, S]` of all rows one after the other;
        frame_counts `[B]`: of each row; frame_times int64 `[F]`: nanoseconds. labels `[B, L]`: the ids that are to be
        learned, -100 elsewhere; they give `loss` alone. logits_to_keep 1: those after the last token; else all.

        Raises ValueError for frames that do not fill the prompt's vision positions, or a row that the context does not
        hold.
        """
        if others.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds are not taken: give input_ids, and pixel_values_videos of frames")
        if input_ids is None:
            raise ValueError("input_ids is missing")
        dispatch.configure(**vars(self.settings.kernel))
        if past_key_values is not None:
            out = self._go_on(input_ids, past_key_values)
        else:
            given = (attention_mask, token_kinds, pixel_values_videos, frame_counts, frame_times)
            rows = list(self._rows(input_ids, *given))
            if labels is not None:
                out = self._learn(rows, labels)
            elif logits_to_keep == 1:
                out = self._read(rows)
            else:
                out = self._all_logits(rows, input_ids.shape[1], bool(use_cache))
        whole = return_dict if return_dict is not None else self.config.return_dict
        return out if whole or whole is None else out.to_tuple()

    def _rows(
        self,
        ids: Tensor,
        mask: Tensor | None,
        kinds: Tensor | None,
        frames: Tensor | None,
        counts: Tensor | None,
        times: Tensor | None,
    ) -> Iterator[Row]:
        total = 0 if frames is None else len(frames)
        counted = [total] if counts is None else counts.tolist()
        if (len(counted) != len(ids) and total) or sum(counted) != total:
            raise ValueError(
                f"frame_counts are {counted} for {len(ids)} rows, and pixel_values_videos holds {total} frames: pass "
                "on all that the processor gave"
            )
        if kinds is None and total:
            raise ValueError(
                "token_kinds is missing, which says where frames stand: pass on all that the processor gave"
            )
        seconds = torch.zeros(total, dtype=torch.float64) if times is None else times.cpu().double() / 1e9
        start = 0
        for i, row in enumerate(ids):
            there = torch.arange(len(row), device=row.device) if mask is None else mask[i].nonzero().squeeze(1)
            if len(there) == 0:
                raise ValueError(f"row {i} has no token: give at least one")
            end = start + (counted[i] if total else 0)
            none = torch.zeros(0, 3, 1, 1, dtype=torch.uint8, device=row.device)
            pixels = none if frames is None else frames[start:end]
            kind = torch.full_like(there, Kind.CONTEXT, dtype=torch.uint8) if kinds is None else kinds[i][there]
            yield Row(row[there], kind.to(torch.uint8), pixels, seconds[start:end], there)
            start = end

    def _read(self, rows: list[Row]) -> TimeViperOutput:
        """The prompts, each by itself, and what follows each."""
        read = [
            read_prompt(self.model, r.ids, r.kind, r.seconds, r.parts, tokens_per_piece=self.tokens_per_piece)
            for r in rows
        ]
        start = read[0] if len(read) == 1 else Prefilled.join(read)
        with torch.inference_mode():
            logits = self.model.decoder.project(start.hidden)[:, None]
        return TimeViperOutput(logits=logits.clone(), past_key_values=start.state, kept=start.kept)

    def _go_on(self, ids: Tensor, state: DecoderState) -> TimeViperOutput:
        decoder, (B, n) = self.model.decoder, ids.shape
        with torch.inference_mode():  # as the states were made in it
            hidden = decoder(decoder.embed(ids.flatten()), Bounds([n] * B, ids.device), state=state).hidden
            logits = decoder.project(hidden).view(B, n, -1)
        return TimeViperOutput(logits=logits.clone(), past_key_values=state)

    def _all_logits(self, rows: list[Row], columns: int, use_cache: bool) -> TimeViperOutput:
        decoder, logits, read = self.model.decoder, [], []
        for row in rows:
            x = self.model.embed(row.pack())
            state = decoder.empty_state(1, x.device, x.dtype) if use_cache else None
            out = decoder(x, Bounds([len(x)], x.device), row.kind, state)
            found = decoder.project(out.hidden)
            logits.append(found.new_zeros(columns, found.shape[-1]).index_copy(0, row.columns[out.index], found))
            if state is not None:
                read.append(Prefilled(out.hidden[-1:], state, out.kept))
        joined = Prefilled.join(read) if read else None
        state, kept = (joined.state, joined.kept) if joined else (None, None)
        return TimeViperOutput(logits=torch.stack(logits), past_key_values=state, kept=kept)

    def _learn(self, rows: list[Row], labels: Tensor) -> TimeViperOutput:
        pack = Pack.join([row.pack(labels[i][row.columns]) for i, row in enumerate(rows)])
        out = self.model(pack)
        return TimeViperOutput(loss=out.loss_sum / max(out.num_labels, 1))

    # ---- what `generate` asks for ---------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: DecoderState | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if past_key_values is not None:
            return {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values, "logits_to_keep": 1}
        names = ("attention_mask", "token_kinds", "pixel_values_videos", "frame_counts", "frame_times")
        return {"input_ids": input_ids, "logits_to_keep": 1, **{name: kwargs.get(name) for name in names}}

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Several answers to each row: its frames, which lie behind those of other rows, come again as a whole."""
        if expand_size == 1:
            return input_ids, kwargs
        counts = kwargs.get("frame_counts")
        for name in ("pixel_values_videos", "frame_times"):
            if (value := kwargs.get(name)) is not None and counts is not None:
                parts = value.split(counts.tolist())
                kwargs[name] = torch.cat([part for part in parts for _ in range(expand_size)])
        for name in ("attention_mask", "token_kinds", "frame_counts"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].repeat_interleave(expand_size, 0)
        return None if input_ids is None else input_ids.repeat_interleave(expand_size, 0), kwargs


TimeViperForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
