"""What somebody has who only has transformers, torch and av: run as a script, it refuses to import this package.

python without_timeviper.py FOLDER VIDEO QUESTION TOKENS OUT
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path

HIDDEN = ("timeviper", "torchvision", "PIL", "timm", "omegaconf", "lightning")


class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def main(folder: str, video: str, question: str, tokens: str, out: str) -> None:
    sys.meta_path.insert(0, Hide())
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    content = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    with torch.no_grad():
        first = model(**inputs, logits_to_keep=1)
        every = model(**inputs)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    written = model.generate(**inputs, max_new_tokens=int(tokens), streamer=streamer)  # pyright: ignore[reportAttributeAccessIssue]
    found = written[0, inputs["input_ids"].shape[1] :]
    save_file({"last": first.logits, "all": every.logits}, f"{out}.safetensors")
    report = {
        "ids": found.tolist(),
        "text": processor.decode(found, skip_special_tokens=True),
        "kept": {name: counts[0] for name, counts in first.kept.items()},
        "hidden": sorted(name for name in sys.modules if name.split(".")[0] in HIDDEN),
    }
    Path(f"{out}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
