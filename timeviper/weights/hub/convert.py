"""Weights from and to local Hugging Face folders: decoders here, vision encoders in `towers.py`.

`import_hf` writes a folder with our names (decoder.json, safetensors, tokenizer), `export_hf` the way back,
from such a folder or from the export of a training stage. `load_decoder` reads all three.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig, TowerConfig, TransVConfig
from timeviper.config.load import CONFIG, load_recipe
from timeviper.config.model import TOUCH_NO_TENSOR
from timeviper.files import new_folder, whole_folder, write_whole
from timeviper.model.decoder import Decoder
from timeviper.weights.hub import towers as hub_towers
from timeviper.weights.hub.config import decoder_config, hub_config, read_config
from timeviper.weights.hub.family import hub_family
from timeviper.weights.hub.names import hub_names, hub_shape, match
from timeviper.weights.tensors import SHARD_BYTES, TensorFolder, write_tensors

SETTINGS, ORIGINAL = "decoder.json", "hf_config.json"
# What comes along unread: tokenizer, chat template, generation defaults.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Weights:
    """A folder's decoder: settings, and where its tensors are."""

    path: Path
    cfg: DecoderConfig
    found: dict[str, str]
    """Our name -> name on disk."""
    files: TensorFolder
    original: dict[str, Any]
    """The Hugging Face config it came with; empty where there was none."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(our name, tensor) one by one, as stored. Raises ValueError for one that is not finite."""
        for name, stored in self.found.items():
            tensor = self.files.read(stored)
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{self.path}: {stored} holds NaN or infinity; the file is damaged")
            yield name, tensor.squeeze(1) if name.endswith("mixer.conv.weight") and tensor.ndim == 3 else tensor


def open_weights(path: str | Path, cfg: DecoderConfig | None = None) -> Weights:
    """Look into a folder without reading weights. `cfg`: settings that its tensors must fit.

    Raises ValueError with everything in it that is missing, unexpected or of another shape or setting.
    """
    path = Path(path)
    files = TensorFolder(path)
    if (path / SETTINGS).is_file():
        own = DecoderConfig(**json.loads((path / SETTINGS).read_text()))
        original = read_json(path / ORIGINAL)
        prefix = ""
    elif (path / CONFIG).is_file():
        own, original, prefix = load_recipe(path / CONFIG).model.decoder, {}, "decoder."
    else:
        original = read_config(path)
        own, prefix = decoder_config(original, str(path / "config.json")), None
    _check_settings(path, own, cfg)
    shapes = _shapes(own)
    if prefix is None:
        result = match(shapes, ((name, files.shape(name)) for name in files.files), own)
        found, problems = result.found, result.problems
    else:
        found, problems = _match_own(files, shapes, prefix)
    problems = _not_weights(original, files) + problems
    if problems:
        raise ValueError("\n  ".join([f"{path} does not hold the decoder its config describes:", *problems]))
    if own.tie_embeddings:
        _check_tied(path, own, files, found)
    return Weights(path, own, found, files, original)


def _not_weights(original: dict[str, Any], files: TensorFolder) -> list[str]:
    """Quantised weights are numbers that mean nothing without their scales, under whatever names."""
    found = files.quantised(files.files)
    if method := original.get("quantization_config"):
        kind = method.get("quant_method", "?") if isinstance(method, dict) else method
        found.insert(0, f"quantization_config says that the weights are quantised ({kind})")
    return found


def _check_tied(path: Path, cfg: DecoderConfig, files: TensorFolder, found: dict[str, str]) -> None:
    """Some programs read a head of its own whatever the config says; one that differs must not be lost."""
    head = "lm_head.weight"
    if head in files.files and not torch.equal(files.read(head), files.read(found["embeddings.weight"])):
        raise ValueError(
            f"{path}: the config says tie_word_embeddings, but {head} is not the embeddings. If the head is meant, "
            "write tie_word_embeddings: false into config.json; if not, remove it from the files"
        )


def _check_settings(path: Path, own: DecoderConfig, cfg: DecoderConfig | None) -> None:
    free = (*TOUCH_NO_TENSOR, *own.facts.unread)
    names = [f.name for f in fields(DecoderConfig) if not f.name.startswith(free)]
    wrong = [n for n in names if cfg is not None and getattr(own, n) != getattr(cfg, n)]
    if wrong:
        rows = [f"model.decoder.{n} is {getattr(cfg, n)!r}, the folder says {getattr(own, n)!r}" for n in wrong]
        raise ValueError("\n  ".join([f"{path} holds another decoder than the config describes:", *rows]))


def _shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Decoder(cfg).state_dict().items()}


def _match_own(
    files: TensorFolder, shapes: dict[str, tuple[int, ...]], prefix: str
) -> tuple[dict[str, str], list[str]]:
    """A folder with our names, those of the decoder behind `prefix`."""
    stored = {name for name in files.files if name.startswith(prefix)}
    stored = {name for name in stored if not name.startswith(f"{prefix}transv.")}
    problems = [f"missing: {prefix}{name}" for name in shapes if prefix + name not in stored]
    problems += [f"unexpected: {name}" for name in sorted(stored) if name[len(prefix) :] not in shapes]
    found = {name: prefix + name for name in shapes if prefix + name in stored}
    for name, place in found.items():
        if files.shape(place) != shapes[name]:
            problems.append(f"another shape: {place} is {files.shape(place)}, needed is {shapes[name]}")
    return found, problems


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """The recurrence's own parameters stay in float32 where the rest is in a shorter type."""
    return torch.promote_types(dtype, torch.float32) if ".ssm." in name else dtype


def load_decoder(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    transv: TransVConfig | None = None,
) -> Decoder:
    """A decoder in eval mode from a Hugging Face folder, an imported one, or the export of a stage.

    Tensor by tensor: memory never holds more than the decoder and one tensor. `transv` adds transfers,
    initialised from the nearest attention. Raises ValueError as `open_weights` does.
    """
    weights = open_weights(path)
    with torch.device("meta"):
        decoder = Decoder(weights.cfg, transv)
    for name, tensor in weights.tensors():
        _assign(decoder, name, tensor.to(device, _dtype_of(name, dtype)))
    for transfer in decoder.transv.values():
        transfer.to_empty(device=device).to(dtype)
        for module in transfer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # pyright: ignore[reportCallIssue]
    decoder.init_transv_from_attention()
    return decoder.eval()


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(module), leaf, nn.Parameter(tensor))


def import_hf(src: str | Path, dst: str | Path, shard_bytes: int = SHARD_BYTES) -> DecoderConfig | TowerConfig:
    """A Hugging Face folder to one for `model.decoder.weights` or `model.towers.<name>.weights`; dtypes as stored.

    A decoder is copied tensor by tensor in bounded memory. Raises ValueError with all that does not fit.
    """
    raw = read_config(Path(src)) if not (Path(src) / SETTINGS).is_file() else {}
    if raw.get("model_type") in hub_towers.encoders():
        with whole_folder(_new_folder(src, dst)) as partial:
            return hub_towers.copy_tower(raw, Path(src), partial)
    weights = open_weights(src)
    with whole_folder(_new_folder(src, dst)) as partial:
        write_tensors(partial, weights.tensors(), shard_bytes)
        write_whole(partial / SETTINGS, json.dumps(asdict(replace(weights.cfg, weights="")), indent=2) + "\n")
        if weights.original:
            write_whole(partial / ORIGINAL, json.dumps(weights.original, indent=2) + "\n")
        _copy_companions(Path(src), partial)
    return weights.cfg


def export_hf(src: str | Path, dst: str | Path, shard_bytes: int = SHARD_BYTES) -> DecoderConfig | TowerConfig:
    """An imported folder, or the decoder of a stage's export, in Hugging Face layout.

    Of a stage's export, towers, projectors and transfers have no place there and stay behind.
    """
    if (Path(src) / "config.json").is_file():  # an encoder, which has that layout already
        return import_hf(src, dst, shard_bytes)
    weights = open_weights(src)
    names, head = hub_names(weights.cfg), "lm_head.weight"
    dtypes: list[torch.dtype] = []

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights.tensors():
            dtypes.append(tensor.dtype)
            yield names[name], tensor.view(hub_shape(name, tuple(tensor.shape)))
            if name == "embeddings.weight" and weights.cfg.tie_embeddings and hub_family(weights.cfg.family).own_head:
                yield head, tensor.clone()

    with whole_folder(_new_folder(src, dst)) as partial:
        write_tensors(partial, renamed(), shard_bytes)
        config = hub_config(weights.cfg, weights.original, str(dtypes[0]).removeprefix("torch."))
        write_whole(partial / "config.json", json.dumps(config, indent=2) + "\n")
        _copy_companions(Path(src), partial)
    return weights.cfg


def describe(cfg: DecoderConfig | TowerConfig) -> str:
    """One line about what was imported or exported."""
    if isinstance(cfg, TowerConfig):
        return f"{cfg.family} encoder, {cfg.layers} layers, width {cfg.width}, {cfg.image_size} pixels"
    return f"{cfg.family} decoder, {len(cfg.layout)} blocks, width {cfg.width}"


def _new_folder(src: str | Path, dst: str | Path) -> Path:
    if Path(src).resolve() == Path(dst).resolve():
        raise ValueError(f"{dst}: source and destination are the same folder; give another one")
    return new_folder(dst)


def _copy_companions(src: Path, dst: Path) -> None:
    for name in _COMPANIONS:
        if (src / name).is_file():
            shutil.copyfile(src / name, dst / name)
