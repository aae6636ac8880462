"""Text to tokens and back, and the chat template: a thin layer over `tokenizers` and a sandboxed Jinja.

transformers could do the same, but importing it takes seconds in every loader process.

    python -m timeviper.tokenizer train [FOLDER]

makes the small tokenizer that ships in `timeviper/assets`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

ASSETS = Path(__file__).parent / "assets"
# Everyday text: what the length of a text is estimated by where a vocabulary does not say.
ENGLISH = (
    "A woman opens the door and walks into the room. She puts a bag on the table, looks at the clock and "
    "sits down near the window. After some time two children come in with a dog; they talk, laugh and play "
    "with a ball for about five minutes. What does the man on the left do before he leaves the house?"
)
MARK = "\ue000"  # stands for a message's content while a template is rendered; a private-use character

# What templates that ask for the date are told: a prompt must not change with the day. (Llama 3's own default.)
TODAY = date(2024, 7, 26)

Message = dict[str, str]  # role: system | user | assistant; content


class Tokenizer:
    """A byte-level (or other) vocabulary with a chat template. Picklable, so loader processes can have it."""

    def __init__(self, fast: FastTokenizer, config: dict[str, Any], generation: dict[str, Any]) -> None:
        fast.no_padding()
        fast.no_truncation()  # some files come with a limit of 128 tokens
        self.fast, self.config, self.generation = fast, config, generation
        added = fast.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def load(cls, path: str | Path = "") -> Tokenizer:
        """From a folder with tokenizer.json and a chat template, or the path of such a tokenizer.json.

        The template is `chat_template` in tokenizer_config.json or a file chat_template.jinja; without
        `path` it is the tokenizer that ships with the package. Raises ValueError if a part is missing.
        """
        folder = Path(path) if path else ASSETS
        file = folder if folder.suffix == ".json" else folder / "tokenizer.json"
        folder = file.parent
        if not file.is_file():
            hint = " (tokenizer.model must be converted: save it as a fast tokenizer with transformers)"
            hint = hint if (folder / "tokenizer.model").is_file() else ""
            raise ValueError(f"model.tokenizer: no file {file}; it takes a folder with tokenizer.json{hint}")
        try:
            fast = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(
                f"model.tokenizer: {file} is not a tokenizer of the tokenizers library ({error})"
            ) from error
        config = _read_json(folder / "tokenizer_config.json")
        if (template := folder / "chat_template.jinja").is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        if isinstance(templates := config.get("chat_template"), list):  # several, by name
            config["chat_template"] = {t["name"]: t["template"] for t in templates}.get("default")
        if not config.get("chat_template"):
            raise ValueError(
                f"model.tokenizer: {folder} has no chat template; add chat_template.jinja beside tokenizer.json"
            )
        return cls(fast, config, _read_json(folder / "generation_config.json"))

    def save(self, folder: str | Path) -> None:
        """Write all that `load` (and transformers) needs into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.fast.to_str(pretty=True), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", self.config)
        if self.generation:
            _write_json(folder / "generation_config.json", self.generation)

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the highest id plus one."""
        return max(self.fast.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text: what looks like a special token stays text."""
        self.fast.encode_special_tokens = True  # the library's name for "treat them as text"
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_template(self, piece: str) -> list[int]:
        """Tokens of a piece of the chat template: special tokens are recognised."""
        self.fast.encode_special_tokens = False
        return self.fast.encode(piece, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.fast.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self) -> TextStream:
        """A decoder for text that arrives token by token."""
        return TextStream(self)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the end of a turn in the template, and the model's end-of-text tokens."""
        eos = self.generation.get("eos_token_id", [])
        stops = {*(eos if isinstance(eos, list) else [eos])}
        if (token := self._special_texts.get("eos_token")) is not None:
            stops.add(self.fast.token_to_id(token))
        after = self.render([{"role": "user", "content": ""}, {"role": "assistant", "content": MARK}]).split(MARK)[-1]
        stops.update([i for i in self.encode_template(after) if i in self.special_ids][:1])
        return sorted(i for i in stops if i is not None)

    @cached_property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes a token, to estimate lengths without reading text."""
        known = self.config.get("bytes_per_token")
        return float(known) if known else bytes_per_token(self, [ENGLISH])

    @cached_property
    def _special_texts(self) -> dict[str, str]:
        """bos_token, eos_token, ... as the template may use them."""
        tokens = {k: v for k, v in self.config.items() if k.endswith("_token") and isinstance(v, str | dict)}
        return {k: v["content"] if isinstance(v, dict) else v for k, v in tokens.items()}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as one text. Raises ValueError with the template's own words if it objects."""
        try:
            return _compile(self.config["chat_template"]).render(
                messages=[dict(m) for m in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_texts,
            )
        except Exception as error:  # what its code does with the messages may raise anything
            roles = [m["role"] for m in messages]
            hint = ""
            if "system" in roles and self._takes([m for m in messages if m["role"] != "system"]):
                hint = (
                    "; it takes them without the system message: write that into the first user's message of the data "
                    "(or leave chat.system empty), or give the tokenizer's folder a chat_template.jinja that has one"
                )
            raise ValueError(f"the chat template refuses the messages ({', '.join(roles)}): {error}{hint}") from error

    def _takes(self, messages: Sequence[Message]) -> bool:
        try:
            return bool(self.render(messages))
        except ValueError:
            return False


class TextStream:
    """Turns tokens into text as they come; a character is held back until all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start, self.shown = 0, 0  # a window of tokens: decoded for context, already given out

    def step(self, token: int) -> str:
        """Text that `token` completes, often empty."""
        self.ids.append(int(token))
        text = self._new_text()
        if text.endswith("\ufffd"):  # an unfinished character
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return text

    def flush(self) -> str:
        """What is left at the end; bytes that form no character become U+FFFD."""
        text = self._new_text()
        self.start = self.shown = len(self.ids)
        return text

    def _new_text(self) -> str:
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        return self.tokenizer.decode(self.ids[self.start :])[len(before) :]


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, with which templates mark what an assistant writes for programs that
    look for labels there (transformers); here labels come from the messages, and the tags print what is in them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """A template of unknown origin, in a sandbox, with what transformers' own sandbox has."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **kwargs)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    environment.filters["tojson"] = tojson
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"model.tokenizer: the chat template is not valid Jinja: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Mean UTF-8 bytes a token of texts."""
    return sum(len(t.encode()) for t in texts) / sum(len(tokenizer.encode(t)) for t in texts)
