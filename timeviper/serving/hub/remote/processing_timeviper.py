"""The processor of a TimeViper folder for transformers: conversations about files become what the model takes.

Only a tokenizer stands beside it: frames are decoded here with PyAV, so that neither torchvision nor Pillow is needed,
and times are those of the container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from timeviper.config.plain import section
from timeviper.config.settings import ChatConfig, FramesConfig
from timeviper.datamodules.chat import Encoded, Media, encode_chat
from timeviper.datamodules.frames.container import Still
from timeviper.datamodules.frames.share import Length, shared
from timeviper.datamodules.frames.video import Frames, probe_video, read_video
from timeviper.datamodules.shards.schema import media_type
from timeviper.inference.given import frames_of
from timeviper.pack import Kind
from timeviper.serving.hub.remote.conversation import Conversation, Medium, read_conversation, source_of
from timeviper.serving.hub.remote.template import plain_template, recovered, rendered_prompt
from timeviper.tokenizer import Tokenizer

OPTIONS = ("fps", "num_frames", "max_frames", "do_sample_frames", "video_metadata", "padding", "return_tensors")


class TimeViperProcessor(ProcessorMixin):
    """`apply_chat_template(conversation, tokenize=True, return_dict=True)` is the way in: what a person wrote is
    encoded apart from the template, so that no text opens or closes a turn."""

    def __init__(
        self,
        tokenizer: Any = None,
        chat_template: str | None = None,
        chat: Mapping[str, Any] | None = None,
        frames: Mapping[str, Any] | None = None,
        image_size: int = 384,
        tokens_per_frame: int = 16,
        max_tokens: int = 131072,
        stop_ids: Sequence[int] = (),
        **others: Any,
    ) -> None:
        """chat, frames: as in the recipe; image_size: of the largest tower, in pixels; max_tokens: of the context."""
        self.chat, self.frames = dict(chat or {}), dict(frames or {})
        self.image_size, self.tokens_per_frame, self.max_tokens = image_size, tokens_per_frame, max_tokens
        self.stop_ids = list(stop_ids)
        super().__init__(tokenizer, chat_template=chat_template)
        template = plain_template(chat_template or tokenizer.chat_template)
        config = {**tokenizer.special_tokens_map, "chat_template": template}
        # A copy: encoding switches the tokenizer's treatment of special tokens back and forth.
        fast = FastTokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._words = Tokenizer(fast, config, {"eos_token_id": self.stop_ids})

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "token_kinds"]
        return [*names, "pixel_values_videos", "frame_counts", "frame_times"]

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "pt",
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """One conversation or a list of them, as text or as a batch; their form: `conversation.py` beside this file.

        tokenize: read the media and encode. add_generation_prompt: the answer is to be written; without it the
        conversation ends with an answer. Options, here or in `processor_kwargs`: fps (frames a second), num_frames (of
        each video, in place of fps), max_frames (of a conversation); what they leave open is as in training.

        Raises ValueError for tools, another template, options that there are not, and files that cannot be read.
        """
        if tools or options.pop("documents", None) or options.pop("continue_final_message", False):
            raise ValueError("tools, documents and continue_final_message are not supported: the model knows none")
        if chat_template not in (None, self.chat_template):
            raise ValueError("chat_template: the model knows the template of its folder only")
        for ignored in ("load_audio_from_video", "return_assistant_tokens_mask", "sanitize_control_tokens"):
            options.pop(ignored, None)
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        read = [read_conversation(one) for one in (conversation if several else [conversation])]
        if not tokenize:
            chat = section(ChatConfig, self.chat)
            texts = [rendered_prompt(self._words, one.messages, chat.system, add_generation_prompt) for one in read]
            return texts if several else texts[0]
        batch = self._batch(read, add_generation_prompt, {**(processor_kwargs or {}), **options})
        return batch if return_dict else batch["input_ids"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Questions about media: `text` is a user's words, as `timeviper ask` takes them, or what
        `apply_chat_template(tokenize=False, add_generation_prompt=True)` made of a conversation.

        videos, images: a path, an address, or frames in memory, one for each text (a list of lists: several for each).
        """
        if text is None:
            raise ValueError("text is missing: the question, or use apply_chat_template(conversation, tokenize=True)")
        texts = [text] if isinstance(text, str) else list(text)
        media: list[list[Medium]] = [[] for _ in texts]
        for kind, given in (("image", images), ("video", videos)):
            for i, found in enumerate(_of_each(given, len(texts), kind)):
                media[i] += [Medium(kind, source_of(place)) for place in found]
        talks = [recovered(self._words, said) or [{"role": "user", "content": said}] for said in texts]
        read = [Conversation(messages, found) for messages, found in zip(talks, media)]
        return self._batch(read, True, {**(processor_kwargs or {}), **options})

    def _batch(self, read: Sequence[Conversation], generate: bool, options: Mapping[str, Any]) -> BatchFeature:
        if unknown := sorted(set(options) - set(OPTIONS) - {"videos_kwargs", "text_kwargs", "images_kwargs"}):
            raise ValueError(f"{', '.join(unknown)}: no option here; there are {', '.join(OPTIONS)}")
        options = {**options, **options.get("videos_kwargs", {})}
        wanted = self._wanted(options)
        shown = [self._look(one.media, wanted, options.get("video_metadata")) for one in read]
        chat = section(ChatConfig, self.chat)
        encoded = [
            encode_chat(
                self._words,
                one.messages,
                [Media(f.times, f.duration, f.kind) for f in frames],
                self.tokens_per_frame,
                chat,
                generate=generate,
                max_tokens=self.max_tokens,
            )
            for one, frames in zip(read, shown)
        ]
        data: dict[str, Any] = self._padded(encoded)
        every = [f for frames in shown for f in frames]
        if every:
            data["pixel_values_videos"] = torch.cat([torch.as_tensor(f.pixels) for f in every])
            data["frame_counts"] = torch.tensor([sum(len(f.times) for f in frames) for frames in shown])
            # Whole numbers, so that a cast of the batch to a shorter type leaves them as they are.
            data["frame_times"] = torch.from_numpy(np.rint(np.concatenate([f.times for f in every]) * 1e9)).long()
        return BatchFeature(data)

    def _wanted(self, options: Mapping[str, Any]) -> FramesConfig:
        frames = section(FramesConfig, self.frames)
        if options.get("do_sample_frames") is False:
            raise ValueError("do_sample_frames: frames of files are always chosen; give those in memory as an array")
        fps, count, most = (options.get(name) for name in ("fps", "num_frames", "max_frames"))
        if fps is not None and count is not None:
            raise ValueError("fps and num_frames exclude each other: give one of them")
        for name, value in (("fps", fps), ("num_frames", count), ("max_frames", most)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value}")
        if fps is not None:
            frames = replace(frames, fps=float(fps))
        if count is not None:
            frames = replace(frames, min_frames=int(count), max_frames=int(count))
        return frames if most is None else replace(frames, max_frames=int(most))

    def _look(self, media: Sequence[Medium], wanted: FramesConfig, metadata: Any) -> list[Frames]:
        """The frames of the media of one conversation, which share `max_frames`."""
        files = [_file(medium) for medium in media]
        each = [wanted] * len(media)
        if len(media) > 1 and all(file is not None for file in files):
            lengths = [_length(cast(Any, file)) for file in files]
            each = shared(lengths, wanted)
        return [
            self._in_memory(medium.source, frames, metadata)
            if file is None
            else read_video(cast(Any, file), self.image_size, frames)
            for medium, file, frames in zip(media, files, each)
        ]

    def _in_memory(self, source: Any, wanted: FramesConfig, metadata: Any) -> Frames:
        """Frames `[F, H, W, 3]` with the `fps` of their metadata, or a picture `[H, W, 3]`."""
        if isinstance(source, Frames):
            return frames_of(source, self.image_size, wanted)
        pixels = source if isinstance(source, Tensor) else np.asarray(source)
        if pixels.ndim == 3:
            return frames_of(pixels, self.image_size, wanted)
        said = metadata[0] if isinstance(metadata, Sequence) and metadata else metadata
        fps = said.get("fps") if isinstance(said, Mapping) else getattr(said, "fps", None)
        if fps is None:
            raise ValueError("frames in memory need video_metadata={'fps': ..}, the rate that they were taken at")
        return frames_of(pixels, self.image_size, wanted, fps=float(fps))

    def _padded(self, encoded: Sequence[Encoded]) -> dict[str, Any]:
        """Rows `[B, L]`, padded before their first token."""
        longest = max(len(e.ids) for e in encoded)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(encoded), longest), pad)
        mask, kinds = torch.zeros_like(ids), torch.full_like(ids, Kind.CONTEXT, dtype=torch.uint8)
        for i, one in enumerate(encoded):
            start = longest - len(one.ids)
            ids[i, start:], mask[i, start:], kinds[i, start:] = one.ids, 1, one.kind
        return {"input_ids": ids, "attention_mask": mask, "token_kinds": kinds}


def _of_each(given: Any, count: int, kind: str) -> list[list[Any]]:
    """The media of each text."""
    if given is None:
        return [[] for _ in range(count)]
    if not isinstance(given, (list, tuple)):
        given = [given]
    if count == 1 and not any(isinstance(one, (list, tuple)) for one in given):
        return [list(given)]
    if len(given) != count:
        raise ValueError(f"{len(given)} {kind}s for {count} texts: give one for each, or a list for each")
    return [list(one) if isinstance(one, (list, tuple)) else [one] for one in given]


def _file(medium: Medium) -> Any:
    """What is opened for a medium; None for frames in memory."""
    if isinstance(medium.source, (str, bytes)) or hasattr(medium.source, "read"):
        still = medium.kind == "image" or (isinstance(medium.source, str) and media_type(medium.source) == "image")
        return Still(cast(Any, medium.source)) if still else medium.source
    return None


def _length(file: Any) -> Length:
    found = probe_video(file)
    return Length(found.duration, found.frames)


TimeViperProcessor.register_for_auto_class()
