"""The model card of a folder: what the model is, where it comes from, how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from timeviper.config import ModelConfig, Recipe
from timeviper.config.shape import tokens_per_frame
from timeviper.weights.lineage import generations

USE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "FOLDER"  # this one
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
question = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What appears first?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
)
answer = model.generate(**inputs.to(model.device))[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```"""


def model_card(recipe: Recipe, plain: Mapping[str, Any], lineage: dict[str, Any], parameters: int) -> str:
    """`README.md`. plain: the recipe as the folder has it."""
    head = {"library_name": "transformers", "pipeline_tag": "video-text-to-text", "tags": ["timeviper", "custom_code"]}
    rows = [_row(entry) for entry in generations(lineage)]
    blocks = (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {recipe.name} ({recipe.size})",
        recipe.about or "A TimeViper model: it answers questions about videos.",
        f"{_described(recipe.model)} {parameters:,} parameters.",
        "## Use\n\nIt needs transformers, torch and av (PyAV); the code comes with the folder. Neither torchvision nor "
        f"Pillow is needed.\n\n{USE}",
        _frames(recipe),
        "## Lineage\n\nThe last stage first. Digests say whether two things are the same.\n\n"
        "| stage | step | trained | seed | recipe | weights | data |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(rows),
        "## Recipe\n\nAll settings of the last stage; of absolute paths the last part.\n\n"
        f"```yaml\n{yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True, width=110)}```",
        f"Written by TimeViper recipes {lineage.get('timeviper', '')} after the paper TimeViper (arXiv 2511.16595). "
        "`timeviper import FOLDER OUT` brings it back for evaluation and more training.",
    )
    return "\n\n".join(blocks) + "\n"


def _described(model: ModelConfig) -> str:
    towers = ", ".join(f"{t.family} at {t.image_size} pixels" for t in model.towers.values())
    stages = model.transv.stages.values()
    kept = ", ".join(f"{s.keep:.0%} of the vision tokens from block {s.layer} on ({s.select})" for s in stages)
    transv = f" TransV leaves {kept}." if kept else " TransV is off."
    return (
        f"{len(model.decoder.layout)} blocks `{model.decoder.layout}` (M Mamba-2, * attention, - MLP) of width "
        f"{model.decoder.width}; vision: {towers}, {tokens_per_frame(model)} tokens a frame.{transv}"
    )


def _frames(recipe: Recipe) -> str:
    f = recipe.data.frames
    return (
        f"Of a video it takes {f.fps:g} frames a second, at most {f.max_frames}, each at the time that the file says. "
        "`processor_kwargs={'num_frames': ..}` or `{'fps': ..}` choose otherwise. The video stands before the question."
    )


def _row(entry: Mapping[str, Any]) -> str:
    data = entry.get("data") or {}
    told = ", ".join(f"{name} {digest}" for name, digest in data.items())
    trained = ", ".join(entry.get("trained", entry["parts"]))
    cells = (entry["name"], entry["step"], trained, entry["seed"], entry.get("recipe"), entry.get("weights"), told)
    return "| " + " | ".join(json.dumps(c) if isinstance(c, dict) else str(c or "-") for c in cells) + " |"
