"""All that a running server holds: the model, its engine, decoders, and what each key owns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timeviper.datamodules.build import pack_format
from timeviper.inference.ask import LoadedModel
from timeviper.serving.asking import Asker, Tenant
from timeviper.serving.decoders import Decoders
from timeviper.serving.engine import Engine
from timeviper.serving.media import MediaRoom, remove_work
from timeviper.serving.metrics import HttpCounts
from timeviper.serving.remote import Fetcher
from timeviper.serving.settings import ServeSettings
from timeviper.serving.store import FileStore
from timeviper.serving.videos import States, VideoStore

WORKERS = 8  # threads for what waits: files, children that decode


class Server:
    """Made once; `close` ends its threads and processes."""

    def __init__(self, model: LoadedModel, settings: ServeSettings, fetcher: Fetcher | None = None) -> None:
        """Raises ConfigError for settings that cannot be."""
        settings.check()
        self.model, self.settings, self.started = model, settings, int(time.time())
        settings.store.mkdir(parents=True, exist_ok=True)
        remove_work(settings.store)
        self.decoders = Decoders(settings.decoding, settings.decoders)
        self.engine = Engine(
            model.model,
            model.tokenizer,
            width=settings.width,
            queue=settings.queue,
            prompts=settings.prompts,
            num_bytes=settings.state_bytes,
            kernel=dict(vars(model.recipe.model.kernel)),
        )
        form = pack_format(model.recipe)
        media = MediaRoom(settings, self.decoders, form.image_size, model.recipe.data.frames, fetcher)
        self.states = States(settings.kept_bytes)
        self.asker = Asker(model, media, self.states, self.engine.wake)
        self.workers = ThreadPoolExecutor(WORKERS, "timeviper-work")
        self.http = HttpCounts()
        self.names = (name_of(model.export), str(model.export), "timeviper", "default")
        """What clients may call the model; the first is its name."""
        self._tenants: dict[str, Tenant] = {}
        self._lock = threading.Lock()

    def start(self) -> Server:
        self.engine.start()
        return self

    def close(self) -> None:
        self.engine.stop()
        self.workers.shutdown(cancel_futures=True)
        self.decoders.close()

    def tenant(self, name: str) -> Tenant:
        with self._lock:
            if name not in self._tenants:
                folder = self.settings.store / name
                files = FileStore(folder / "files", self.settings.max_store)
                self._tenants[name] = Tenant(name, files, VideoStore(folder / "videos"))
            return self._tenants[name]


def name_of(export: Path) -> str:
    """Of a run's export the run's folder, and that above: tiny/stage2_instruct."""
    run = export.parent if export.name == "export" else export
    return "/".join(run.absolute().parts[-2:]).lstrip("/")
