"""A prompt of one's own: read, shown, and all that is wrong with it said together."""

from __future__ import annotations

from pathlib import Path

import pytest
from capsules import choice, moment

from timeviper.benchmarking.prompt_file import read_prompt
from timeviper.benchmarking.testset import Form
from timeviper.errors import ConfigError

OFFICIAL = """
text: |
  {subtitles}
  Select an option {{A to D}}.
  {question}
  {options}
cue: "The best answer is:"
max_new_tokens: 8
"""


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    return path


def test_a_prompt_is_said_as_it_is_written(tmp_path: Path) -> None:
    form = read_prompt(written(tmp_path, OFFICIAL), "mcq")
    assert form.render(choice("q", options=2)) == (
        "Select an option {A to D}.\nWhat?\nA. thing 0\nB. thing 1\nThe best answer is:"
    )
    assert form.max_new_tokens == 8


def test_one_file_may_serve_several_kinds_of_questions(tmp_path: Path) -> None:
    path = written(tmp_path, 'mcq: {text: "{question} {options}"}\ngrounding: {text: "When is {question}"}\n')
    assert read_prompt(path, "grounding").render(moment("q", (1, 2))) == "When is When?"
    assert read_prompt(path, "mcq") == Form("{question} {options}")
    with pytest.raises(
        ConfigError, match="has no section dense, as whose questions are asked: it has mcq or grounding"
    ):
        read_prompt(path, "dense")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("txt: hello", "Did you mean text?"),
        ("option: x", "is what is said to the model: it must be there"),
        ("text: hello", r"has no \{question\}, so that all questions would be one"),
        ("text: '{question} {answer}'", r"has \{answer\}; it may have \{question\}, \{options\}"),
        ("text: '{question'", "has braces that do not fit"),
        ("{text: '{question}', max_new_tokens: 0}", "must be a whole number above 0"),
        ("{text: '{question}', cue: 3}", "must be a text"),
        ("- one", "must be a mapping with text"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_prompt(written(tmp_path, content), "mcq")
    with pytest.raises(ConfigError, match="No such file"):
        read_prompt(tmp_path / "gone.yaml", "mcq")
