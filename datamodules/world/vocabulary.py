"""The small vocabulary that ships with the package: byte-level BPE on the text of the default data."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from timeviper.datamodules.when import span
from timeviper.datamodules.world.world import world_text
from timeviper.tokenizer import ASSETS, ENGLISH, Tokenizer, bytes_per_token

# A pair of digits before an even number of others, or the last one or two and what follows the point.
NUMBER = r" ?\d{1,2}(?=(?:\d\d)+(?!\d))| ?\d{1,2}(?:\.\d+s?)?"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(vocab_size: int = 1792, lines: int = 4000) -> Tokenizer:
    """Byte-level BPE on the text of the default data: digits in pairs, every text round-trips."""
    texts = list(islice(world_text(seed=0), lines))
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Digits in pairs from the point: "112.5s" is 1 12.5s, "10239.0" is 1 02 39.0. So the time of a frame is one
            # token in its first hundred seconds, and a Mamba block's convolution still reaches it from the frame's
            # third token: where it could not, tokens hardly learned when they are. Words come with their space.
            pre_tokenizers.Split(Regex(NUMBER + r"| ?\p{L}+| ?[^\s\p{L}\d.]+|\s+|\."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(_corpus(texts), trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    tokenizer = Tokenizer(fast, config, {"eos_token_id": [SPECIAL.index("<|endoftext|>"), SPECIAL.index("<|im_end|>")]})
    tokenizer.config["bytes_per_token"] = round(bytes_per_token(tokenizer, texts), 2)
    return tokenizer


def _corpus(texts: list[str]) -> list[str]:
    """Words, each as often as any other, so that the vocabulary does not change with how often the data asks
    something; those of the data and of the prompt come before everyday English, which is there so that
    questions in other words do not fall into single bytes."""
    pairs = [f"{n:02d}" for n in range(100)] + [str(n) for n in range(10)]
    # Tenths of the first ten seconds; of later ones those that frames at one or two a second have. Pairs come oftener,
    # so that another tenth, "34.7", is 34 .7 and not 3 4.7.
    times = [f"{n / 10:.1f}" for n in range(100)] + [f"{pair}.{tenth}" for pair in pairs for tenth in "05"]
    numbers = [number for t in times for number in (t, f" {t}", f"{t}s")] + [w for n in pairs for w in (n, f" {n}")] * 4
    told = "The video lasts 1.5 seconds, shown in 8 frames.", span(1, 3)  # of prompts and of answers about other data
    ours = _words([*texts, "user", "assistant", *told])
    return [*numbers, *ours] * 3 + _words([ENGLISH])


def _words(texts: Sequence[str]) -> list[str]:
    """All words, with the space before them if there is one, sorted."""
    return sorted({word for text in texts for word in re.findall(r" ?[^\W\d]+", text)})


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] != "train":
        raise SystemExit("usage: python -m timeviper.datamodules.world.vocabulary train [FOLDER]")
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else ASSETS
    made = train()
    made.save(target)
    print(f"{target}: {made.vocab_size} tokens, {made.bytes_per_token} bytes a token")
