"""How a model is served: where, to whom, and within which bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from timeviper.errors import ConfigError, Problem
from timeviper.serving.decoders import DecodeLimits

LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """What `timeviper serve` can be told."""

    store: Path
    """Folder of uploaded files and of states."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    """Who shows one of them may ask; each has files and states of its own. None: everybody who reaches the port."""
    media_root: Path | None = None
    """Folder whose files requests may name; None: none."""
    domains: tuple[str, ...] = ()
    """Hosts that media may be fetched from; none: nothing is fetched."""
    width: int = 16
    """Answers that are written in one step of the model; more take several."""
    queue: int = 256
    """Requests that wait at most."""
    prompts: int = 4
    """Prompts that are read in turns at a time."""
    state_bytes: int = 8 << 30
    """Memory for what the model remembers of all prompts and answers under way."""
    kept_bytes: int = 4 << 30
    """Memory for states of videos that may be asked about again."""
    max_frames: int = 256
    """Of one request, over all of its media."""
    max_fps: float = 30.0
    max_new_tokens: int = 1024
    max_choices: int = 8
    max_stops: int = 16
    max_body: int = 96 << 20
    """Bytes of a request's JSON, media in it among them."""
    max_upload: int = 16 << 30
    """Bytes of an uploaded file."""
    max_store: int = 1 << 40
    """Bytes of all uploaded files of one key."""
    max_fetch: int = 1 << 30
    """Bytes of a file fetched from elsewhere."""
    max_media: int = 8
    """Videos and pictures of a request; pictures that tell their times are one video."""
    max_pictures: int = 1024
    """Pictures that a request brings along."""
    keep_alive: float = 5.0
    """Seconds without text after which a stream says that it lives."""
    decoding: DecodeLimits = field(default_factory=DecodeLimits)
    decoders: int = 4
    """Files that are looked at a time."""

    def check(self) -> None:
        """ConfigError for what cannot be served, or should not."""
        wrong = []
        if self.host not in LOCAL and not self.keys:
            wrong.append(
                Problem(
                    "--host", self.host, "others could reach the model: give --key-file (or TIMEVIPER_KEY), "
                    f"or serve on {LOCAL[0]}.",
                )
            )  # fmt: skip
        wrong += [
            Problem("--key-file", "***", "a key has 8 characters or more, none of them a space.")
            for key in self.keys
            if len(key) < 8 or any(c.isspace() or not c.isprintable() or not c.isascii() for c in key)
        ]
        if self.media_root is not None and not self.media_root.is_dir():
            wrong.append(Problem("--media-root", str(self.media_root), "there is no such folder."))
        for name in ("width", "queue", "prompts", "max_frames", "max_new_tokens", "max_choices"):
            if getattr(self, name) < 1:
                option = "--" + name.replace("_", "-")
                wrong.append(Problem(option, getattr(self, name), "must be 1 or more."))
        if not 0 <= self.port < 1 << 16:
            wrong.append(Problem("--port", self.port, "must be from 0 (any that is free) to 65535."))
        if wrong:
            raise ConfigError("how to serve", wrong)
