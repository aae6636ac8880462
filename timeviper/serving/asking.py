"""A checked request becomes a job of the engine: media opened, prompt encoded and counted, bytes predicted.

A request about one video goes by that video's state: read once (`LoadedModel.watch`), then every question costs about
itself. Of several media, and of frames that a request brings along one by one, the prompt is read whole each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.video import Frames
from timeviper.inference.ask import LoadedModel
from timeviper.inference.prefill import Prefilled, kept_bytes
from timeviper.inference.question import Question, TooLongError, check_fits, read_question
from timeviper.inference.state_key import StateKey, head_of
from timeviper.inference.video_state import VideoState
from timeviper.inference.watch import watching
from timeviper.model.state_size import state_bytes
from timeviper.pack import Kind, text_runs, vision_groups
from timeviper.serving.apart import ApartStream
from timeviper.serving.facts import Facts
from timeviper.serving.media import MediaRoom, OpenMedium
from timeviper.serving.problems import ApiError
from timeviper.serving.references import Medium, Stored
from timeviper.serving.store import FileStore
from timeviper.serving.turns import Pause
from timeviper.serving.videos import States, Video, VideoStore, video_id
from timeviper.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class Tenant:
    """What belongs to one key."""

    name: str
    files: FileStore
    videos: VideoStore


@dataclass
class Prepared:
    """A request that can be answered."""

    read: Callable[[Pause], Prefilled]
    ready: Callable[[], bool]
    num_bytes: int
    facts: Facts
    progress: list[int]
    """Frames that have been read, and of how many."""


class Asker:
    """Prepares requests for one model; may be called from several threads."""

    def __init__(self, model: LoadedModel, media: MediaRoom, states: States, wake: Callable[[], None]) -> None:
        self.model, self.media, self.states, self.wake = model, media, states, wake
        self.form = pack_format(model.recipe)
        self.key: StateKey = model.state_key
        # Encoding switches how special tokens are seen, so the engine's thread has a tokenizer of its own.
        self._tokenizer, self._lock = Tokenizer.load(str(model.export)), threading.Lock()
        weight = model.model.decoder.embeddings.weight
        self._fixed = model.model.decoder.empty_state(1, "meta", weight.dtype).num_bytes()

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        longest: int,
        choices: int,
        salt: str,
        tenant: Tenant,
    ) -> Prepared:
        """Raises ApiError."""
        opened = [self._open(medium, tenant) for medium in media]
        question, encoded = self._encoded(messages, opened, longest)
        facts, progress = Facts(opened, encoded.kind), [0, question.num_frames]
        num_bytes = choices * (self._kept(encoded, longest) + self._fixed)
        shown = opened[0] if len(opened) == 1 else None
        if shown is not None and shown.content:
            facts.video = self._id(shown, encoded, salt, tenant)
            state = self.states.get(facts.video) or tenant.videos.state(facts.video, self.model)
            if state is not None:
                self.states.put(facts.video, state)
                facts.cached_tokens = state.tokens
            else:
                num_bytes += self._state_bytes(encoded, question.num_frames)
                shown = opened[0] = self._with_pixels(media[0], shown, tenant)
                question.media = [shown.frames]
            by_state = _ByState(self, facts, question, shown, salt, state, longest, progress)
            return Prepared(by_state.read, by_state.ready, num_bytes, facts, progress)
        opened = [self._with_pixels(*pair, tenant) for pair in zip(media, opened)]
        question.media = [medium.frames for medium in opened]

        def read(pause: Pause) -> Prefilled:
            return self._whole(question, longest, progress, pause)

        return Prepared(read, lambda: all(_ready(m.frames) for m in opened), num_bytes, facts, progress)

    def watch(self, medium: Medium, salt: str, tenant: Tenant) -> Watch:
        """What reads a video for questions to come. Raises ApiError."""
        shown = self._open(medium, tenant)
        messages: list[Message] = [{"role": "user", "content": ""}]
        question, encoded = self._encoded(messages, [shown], 0)
        id = self._id(shown, encoded, salt, tenant)
        state = self.states.get(id) or tenant.videos.state(id, self.model)
        if state is None:
            shown = self._with_pixels(medium, shown, tenant)
            question.media = [shown.frames]
        num_bytes = self._state_bytes(encoded, question.num_frames)
        return Watch(self, id, question, shown, salt, state, num_bytes, [0, question.num_frames])

    def _open(self, medium: Medium, tenant: Tenant) -> OpenMedium:
        """With its times known; of a watched video these are known without its bytes."""
        if isinstance(medium.place, Stored) and medium.place.id.startswith("video-"):
            video = tenant.videos.get(medium.place.id)
            wanted = video.medium().wanted
            if medium.wanted not in (wanted, type(wanted)()):
                raise ApiError(400, "a watched video has the frames that it was watched with", medium.where or None)
            none = np.zeros((0, 3, self.form.image_size, self.form.image_size), np.uint8)
            times = np.array(video.frame_times)
            frames = Frames(none, times, video.duration, len(times), 0.0, "image" if video.kind == "image" else "video")
            return OpenMedium(frames, video.content, wanted)
        return self.media.open(medium, tenant.files, self.wake)

    def _with_pixels(self, medium: Medium, shown: OpenMedium, tenant: Tenant) -> OpenMedium:
        """The medium, whose frames can be read; of a watched video, whose state is another, its own file's."""
        if isinstance(medium.place, Stored) and medium.place.id.startswith("video-"):
            source = tenant.videos.get(medium.place.id).medium(medium.where)
            return self.media.open(source, tenant.files, self.wake)
        return shown

    def _encoded(
        self, messages: Sequence[Message], opened: Sequence[OpenMedium], longest: int
    ) -> tuple[Question, Encoded]:
        question = Question(messages, [medium.frames for medium in opened])
        most = self.media.settings.max_frames
        if question.num_frames > most:
            message = f"the request's media have {question.num_frames:,} frames; {most:,} are taken: ask for fewer"
            raise ApiError(400, f"{message} (max_frames)", "max_frames")
        try:
            with self._lock:
                encoded = question.encode(self._tokenizer, self.form)
            check_fits(encoded, question.num_frames, longest, self.model.model.decoder.cfg)
        except TooLongError as error:
            raise ApiError(400, str(error), "messages") from None
        except ValueError as error:  # of the chat template
            raise ApiError(400, str(error), "messages") from None
        return question, encoded

    def _id(self, shown: OpenMedium, encoded: Encoded, salt: str, tenant: Tenant) -> str:
        frames = (asdict(self.media.config_of(shown.wanted)), shown.wanted.start, shown.wanted.end, shown.frames.kind)
        return video_id(self.key, shown.content, frames, encoded, tenant.name, salt)

    def _kept(self, encoded: Encoded, longest: int) -> int:
        vision = int((encoded.kind == Kind.VISION).sum())
        groups = vision_groups(text_runs(encoded.kind, [len(encoded.ids)])[0], vision)
        return kept_bytes(self.model.model.decoder, groups, len(encoded.ids) - vision + longest)

    def _state_bytes(self, encoded: Encoded, frames: int) -> int:
        text = head_of(encoded) - frames * self.model.model.tokens_per_frame
        element = self.model.model.decoder.embeddings.weight.element_size()
        return state_bytes(self.model.recipe.model, "state", frames, text, element)

    def _whole(self, question: Question, longest: int, progress: list[int], pause: Pause) -> Prefilled:
        def on_frames(done: int, total: int) -> None:
            progress[:] = done, total
            pause()

        _pausing(question, pause)
        model = self.model
        return read_question(
            model.model,
            model.tokenizer,
            self.form,
            question,
            tokens_per_piece=model.recipe.eval.tokens_per_piece,
            max_new_tokens=longest,
            on_frames=on_frames,
        )[1]


@dataclass
class Watch:
    """A video that is to be read for questions to come."""

    asker: Asker
    id: str
    question: Question
    shown: OpenMedium
    salt: str
    state: VideoState | None
    """It is there already."""
    num_bytes: int
    progress: list[int]

    def ready(self) -> bool:
        """Whether the next piece can be read at once."""
        if self.state is None and self._waits:
            return not self.asker.states.is_claimed(self.id)
        return _ready(self.shown.frames)

    def read(self, pause: Pause) -> VideoState:
        """The state: that of memory, or of another request that is reading the same video, or read now."""
        states = self.asker.states
        while self.state is None and not states.claim(self.id):
            self._waits = True
            pause()
            self.state = states.get(self.id)
        self._waits = False
        if self.state is None:
            try:
                self.state = states.get(self.id)
                self.new = self.state is None
                self.state = self.state or self._watched(pause)
                states.put(self.id, self.state)
            finally:
                states.unclaim(self.id)
        return self.state

    def __post_init__(self) -> None:
        self._waits = self.new = False

    def _watched(self, pause: Pause) -> VideoState:
        _pausing(self.question, pause)
        wanted = asdict(self.asker.media.config_of(self.shown.wanted))
        key = replace(self.asker.key, content=self.shown.content, sampler=wanted, salt=self.salt)
        steps = watching(self.asker.model, self.shown.frames, key, messages=self.question.messages)
        while True:
            try:
                self.progress[:] = next(steps)
            except StopIteration as end:
                return end.value
            pause()


class _ByState(Watch):
    """A question that goes by its video's state."""

    def __init__(
        self,
        asker: Asker,
        facts: Facts,
        question: Question,
        shown: OpenMedium,
        salt: str,
        state: VideoState | None,
        longest: int,
        progress: list[int],
    ) -> None:
        super().__init__(asker, facts.video, question, shown, salt, state, 0, progress)
        self.facts, self.longest = facts, longest

    def read(self, pause: Pause) -> Prefilled:  # pyright: ignore[reportIncompatibleMethodOverride]
        state = super().read(pause)
        self.asker.states.hits += not self.new
        self.asker.states.misses += self.new
        self.facts.cached_tokens = 0 if self.new else state.tokens
        return state.prompt(self.question.messages, self.longest)[1]


def video_of(watch: Watch, state: VideoState, medium: Medium, created: int) -> Video:
    """What is told of a watched video."""
    source = (
        f"file:{medium.place.id}" if isinstance(medium.place, Stored) else f"path:{getattr(medium.place, 'path', '')}"
    )
    return Video(
        watch.id,
        created,
        source,
        asdict(medium.wanted),
        watch.shown.content,
        state.medium.kind,
        float(state.seconds),
        [float(t) for t in state.times],
        state.tokens,
        state.bytes,
    )


def _ready(frames: object) -> bool:
    return not isinstance(frames, ApartStream) or frames.ready


def _pausing(question: Question, pause: Pause) -> None:
    for medium in question.media:
        if isinstance(medium, ApartStream):
            medium.pause = pause
