"""The chat template of a folder: the tokenizer's own, behind a few lines that make text of lists of parts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from timeviper.tokenizer import MARK, Message, Tokenizer

MOST_TURNS = 8  # of a rendered conversation that is read again

_BEGIN, _END = "{#- parts to text -#}", "{#- the tokenizer's own -#}"
# A line ends between a medium and the text behind it, as in training.
_PARTS = """{%- set said = namespace(messages=SYSTEM) -%}
{%- if messages and messages[0].role == 'system' -%}{%- set said.messages = [] -%}{%- endif -%}
{%- for message in messages -%}
{%- set one = namespace(text='', medium=false) -%}
{%- if message.content is string -%}{%- set one.text = message.content -%}
{%- else -%}{%- for part in message.content or [] -%}
{%- if part.type in ['video', 'video_url'] -%}{%- set one.text = one.text + '<video>' -%}{%- set one.medium = true -%}
{%- elif part.type in ['image', 'image_url'] -%}{%- set one.text = one.text + '<image>' -%}{%- set one.medium = true -%}
{%- else -%}{%- set one.text = one.text + ('\\n' if one.medium and part.text else '') + part.text -%}
{%- set one.medium = false -%}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- set said.messages = said.messages + [{'role': message.role, 'content': one.text}] -%}
{%- endfor -%}
{%- set messages = said.messages -%}"""


def folder_template(own: str, system: str) -> str:
    """`chat_template.jinja` of a folder. system: `chat.system` of the recipe, for conversations without one."""
    first = json.dumps([{"role": "system", "content": system}] if system else [])
    return f"{_BEGIN}{_PARTS.replace('SYSTEM', first)}{_END}{own}"


def plain_template(template: str) -> str:
    """The tokenizer's own template, out of a folder's."""
    _, found, own = template.partition(_END) if template.startswith(_BEGIN) else ("", "", template)
    return own if found else template


def rendered_prompt(tokenizer: Tokenizer, messages: Sequence[Message], system: str, generate: bool) -> str:
    """The conversation as one text, for people; tokens are made of its parts."""
    if system and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return tokenizer.render(messages, add_generation_prompt=generate)


def recovered(tokenizer: Tokenizer, text: str) -> list[Message] | None:
    """The messages that `rendered_prompt` made a text of, up to the question; None where it made it of none."""
    for turns in range(MOST_TURNS):
        talk = ["user", *["assistant", "user"] * turns]
        for roles in (talk, ["system", *talk]):
            try:
                marked = tokenizer.render([{"role": r, "content": MARK} for r in roles], add_generation_prompt=True)
            except ValueError:  # of a template without system messages, for one
                continue
            pieces = [re.escape(piece) for piece in marked.split(MARK)]
            if len(pieces) == len(roles) + 1 and (found := re.fullmatch("(.*?)".join(pieces), text, re.DOTALL)):
                return [{"role": role, "content": said} for role, said in zip(roles, found.groups())]
    return None
