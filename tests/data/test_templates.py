"""Chat templates as they lie on the hub: the tags, functions and refusals that they bring along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from timeviper.config import ChatConfig
from timeviper.datamodules.chat import encode_chat
from timeviper.tokenizer import ASSETS, Message, Tokenizer

PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TAGGED = """{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- set inner = 'seen' %}
            {{- m['content'] + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if inner is defined %}{{- 'leaked' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TALK: list[Message] = [
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "This."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "That."},
]


def with_template(folder: Path, template: str) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / name, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer.load(folder)


@pytest.mark.parametrize(
    "template", [PLAIN, TAGGED, PLAIN.replace("m['content']", "m.content | tojson(ensure_ascii=true)")]
)
def test_text_is_what_transformers_makes_of_it(template: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = with_template(tmp_path / "t", template)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "t")
    for messages, more in ((TALK, False), (TALK[:3], True)):
        told = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=more)
        assert tokenizer.render(messages, more) == told


def test_tags_change_no_token_and_no_label(tmp_path: Path) -> None:
    plain, tagged = (with_template(tmp_path / str(i), t) for i, t in enumerate((PLAIN, TAGGED)))
    a, b = (encode_chat(t, TALK, [], 4, ChatConfig()) for t in (plain, tagged))
    assert a.ids.tolist() == b.ids.tolist()
    assert a.labels.tolist() == b.labels.tolist()


def test_the_date_is_always_the_same_day(tmp_path: Path) -> None:
    dated = with_template(tmp_path / "d", "{{ 'Today: ' + strftime_now('%d %B %Y') + '\\n' }}" + PLAIN)
    assert dated.render(TALK).startswith("Today: 26 July 2024\n")


def test_an_unclosed_tag_is_one_sentence(tmp_path: Path) -> None:
    broken = with_template(tmp_path / "b", "{% generation %}" + PLAIN)
    with pytest.raises(ValueError, match="not valid Jinja"):
        broken.render(TALK)


REFUSALS = {
    "mistral": "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}",
    "gemma": "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "crash": "{% if m['role'] == 'system' %}{{ m['content'] + 1 }}{% endif %}",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_template_without_a_system_turn_says_what_to_do(kind: str, tmp_path: Path) -> None:
    tokenizer = with_template(
        tmp_path / "t", PLAIN.replace("%}{{ '<|im_start|>'", "%}" + REFUSALS[kind] + "{{ '<|im_start|>'", 1)
    )
    tokenizer.render(TALK)
    with pytest.raises(ValueError, match=r"refuses the messages .* first user's message of the data") as error:
        tokenizer.render([{"role": "system", "content": "Be brief."}, *TALK])
    assert "chat.system" in str(error.value)
    alternating = [TALK[0], TALK[0]]
    if kind == "mistral":
        with pytest.raises(ValueError, match=r"roles must alternate$"):  # no system message: no such advice
            tokenizer.render(alternating)
