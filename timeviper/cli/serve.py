"""`timeviper serve`: a model over HTTP, with a page for people."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from timeviper.cli.shards import HELP
from timeviper.errors import ConfigError, Problem

GB = 10**9
NEEDS = ("starlette", "uvicorn", "python_multipart")
KEY = "TIMEVIPER_KEY"
UNKNOWN = 4 * GB  # free memory, where nothing says


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or an export.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings that differ from the recipe, such as data.frames.fps=2."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; anything but this machine needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Keys, one a line; each has files of its own. Or ${KEY}.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Uploaded files and states of videos; RUN/serve if not said.")
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Files that requests may name; none if not said.")
    ] = None,
    fetch_from: Annotated[
        list[str] | None, typer.Option(metavar="DOMAIN", help="Fetch media of this domain; may be repeated. Else none.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Frames of a request at most; data.frames.max_frames if not said.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 1024,
    max_upload_gb: Annotated[float, typer.Option(help="Size of a file at most.")] = 16.0,
    memory_gb: Annotated[
        float | None, typer.Option(help="For what is remembered of requests under way; a share of what is free.")
    ] = None,
    states_gb: Annotated[float | None, typer.Option(help="For states of videos asked about before; likewise.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; more are told to come again.")] = 256,
    width: Annotated[int, typer.Option(help="Answers written in one step of the model.")] = 16,
    prompts: Annotated[int, typer.Option(help="Prompts read in turns at a time.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute in float32 or bfloat16, as for ask.")] = None,
) -> None:
    """Serve a trained model over OpenAI's API and on a page: many questions at a time, about videos of any length.

    Files and states survive in the store. Needs the extra `serve`.
    """
    if lacking := [name for name in NEEDS if find_spec(name) is None]:
        raise ConfigError("serve", [Problem("packages", lacking, "are not installed: pip install 'timeviper[serve]'.")])
    from timeviper.inference.ask import load
    from timeviper.serving.running import listen
    from timeviper.serving.settings import ServeSettings

    settings = ServeSettings(
        store=store or _store_of(run),
        host=host,
        port=port,
        keys=_keys(key_file),
        media_root=media_root,
        domains=tuple(domain.lower().strip(".") for domain in fetch_from or []),
        queue=queue,
        width=width,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        max_upload=int(max_upload_gb * GB),
    )
    if max_frames is not None:
        settings = replace(settings, max_frames=max_frames)
    settings.check()  # and a port that is taken: before the slow part
    link = listen(settings.host, settings.port)
    model = load(run, device=device, dtype=dtype, overrides=overrides or [])
    free = _free_bytes(model.device)
    changes: dict[str, Any] = {
        "state_bytes": int(memory_gb * GB) if memory_gb is not None else free // 2,
        "kept_bytes": int(states_gb * GB) if states_gb is not None else free // 4,
    }
    if max_frames is None:
        changes["max_frames"] = model.recipe.data.frames.max_frames
    _run(model, settings, changes, link)


def _run(model: Any, settings: Any, changes: dict[str, Any], link: Any) -> None:
    from timeviper.training.lock import run_lock

    settings = replace(settings, **changes)
    with run_lock(settings.store, "name another folder with --store"):
        _answer(model, settings, link)


def _answer(model: Any, settings: Any, link: Any) -> None:
    from timeviper.serving.running import Running
    from timeviper.serving.server import Server

    server = Server(model, settings)
    host, port = link.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{server.names[0]} on http://{shown}:{port} (the page; OpenAI's API below /v1)", flush=True)
    if settings.keys:
        print("a browser asks for a name (any) and a password: the key", flush=True)
    Running(server).run(sockets=[link])


def _store_of(run: Path) -> Path:
    """Beside the export, in the run's folder."""
    from timeviper.weights.lineage import find_export

    return find_export(run).absolute().parent / "serve"


def _free_bytes(device: Any) -> int:
    """Of the device that the model is on, beside the model."""
    import torch

    from timeviper.planning.host import free_bytes

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(free_bytes() or UNKNOWN)


def _keys(file: Path | None) -> tuple[str, ...]:
    """Of the file, and of the environment: on a command line everybody on the machine could read them."""
    lines = [] if file is None else file.read_text().splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if file is not None and not found:
        raise ConfigError("serve", [Problem("--key-file", str(file), "holds no key: a line for each.")])
    if file is not None and file.stat().st_mode & 0o077:
        print(f"warning: others may read {file} (chmod 600 {file})", file=sys.stderr)
    return tuple(found) + ((os.environ[KEY],) if os.environ.get(KEY) else ())


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve", context_settings={**HELP, "ignore_unknown_options": True})(serve)
