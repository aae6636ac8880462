"""Tokens, labels and kinds of conversations; the tokenizer that ships; templates of other families."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.config import ChatConfig
from timeviper.datamodules.chat import Media, encode_chat, estimate_text, time_sentence
from timeviper.datamodules.world.vocabulary import train
from timeviper.datamodules.world.world import world_text
from timeviper.pack import IGNORE, Kind
from timeviper.tokenizer import Message, Tokenizer

T = 3  # tokens a frame
NONE, SENTENCE, FRAMES = ChatConfig(time="none"), ChatConfig(time="sentence"), ChatConfig(time="frames")
SMALL = Tokenizer.load()

NEMOTRON = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor -%}"
    "{{ '<SPECIAL_10>System\\n' + ns.system + '\\n' }}"
    "{%- for m in messages if m.role != 'system' -%}"
    "{%- if m.role == 'user' %}{{ '<SPECIAL_11>User\\n' + m.content + '\\n' }}"
    "{%- else %}{{ '<SPECIAL_11>Assistant\\n' + m.content + '\\n<SPECIAL_12>\\n' }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<SPECIAL_11>Assistant\\n' }}{% endif -%}"
)
LLAMA = (
    "{% set turns = messages | selectattr('role', 'ne', 'system') | list %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def with_template(template: str, specials: list[str], **config: str) -> Tokenizer:
    """The small vocabulary with the special tokens and the chat template of another family."""
    tokenizer = Tokenizer.load()
    tokenizer.fast.add_special_tokens(specials)
    return Tokenizer(tokenizer.fast, {**config, "chat_template": template}, {})


FAMILIES = {
    "chatml": SMALL,
    "nemotron": with_template(NEMOTRON, ["<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"], eos_token="<SPECIAL_12>"),
    "llama": with_template(
        LLAMA,
        ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        bos_token="<s>",
        eos_token="<|eot_id|>",
    ),
}
TURN_END = {"chatml": "<|im_end|>", "nemotron": "\n<SPECIAL_12>", "llama": "<|eot_id|>"}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def video(*times: float) -> Media:
    return Media(times, duration=len(times) * 1.0)


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special=False)


def shown(encoded, tokenizer: Tokenizer = SMALL) -> str:
    """The stream as text, each vision token as a dot."""
    runs, text = [], ""
    for token, kind in zip(encoded.ids.tolist(), encoded.kind.tolist()):
        if kind == Kind.VISION:
            text, runs = text + text_of(tokenizer, runs) + ".", []
        else:
            runs.append(token)
    return text + text_of(tokenizer, runs)


# ----- layout ----------------------------------------------------------------------------------------


def test_kinds_and_labels():
    encoded = encode_chat(SMALL, [user("<video>\nWhat colour?"), assistant("red")], [video(0.5, 1.5)], T, NONE)
    assert shown(encoded) == "<|im_start|>user\n......\nWhat colour?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>"
    kinds = encoded.kind.tolist()
    assert kinds == sorted(kinds), "context, vision, instruction, answer"
    assert kinds.count(Kind.CONTEXT) == len(SMALL.encode_template("<|im_start|>user\n"))
    assert kinds.count(Kind.VISION) == 2 * T
    answer = [i for i, kind in enumerate(kinds) if kind == Kind.ANSWER]
    assert text_of(SMALL, encoded.ids[answer].tolist()) == "red<|im_end|>"
    supervised = (encoded.labels != IGNORE).nonzero().flatten().tolist()
    assert supervised == [i - 1 for i in answer], "each answer token is predicted by the one before it"
    assert encoded.labels[supervised].equal(encoded.ids[answer])
    assert (encoded.ids[encoded.kind == Kind.VISION] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", [NONE, SENTENCE, FRAMES, ChatConfig(system="You watch videos.")])
def test_generation_prompt_is_the_prefix_of_training(family: str, chat: ChatConfig):
    tokenizer = FAMILIES[family]
    messages = [user("<video>\nWhat appears?"), assistant("A red ring."), user("And then?"), assistant("A square.")]
    media = [video(0.5, 1.5, 2.5)]
    trained = encode_chat(tokenizer, messages, media, T, chat)
    ends = []
    for turns in (1, 3):
        prompt = encode_chat(tokenizer, messages[:turns], media, T, chat, generate=True)
        n = len(prompt.ids)
        assert prompt.ids.equal(trained.ids[:n])
        assert prompt.kind.equal(trained.kind[:n])
        assert (prompt.labels == IGNORE).all()
        answer = messages[turns]["content"] + TURN_END[family]
        length = len(tokenizer.encode(messages[turns]["content"])) + len(tokenizer.encode_template(TURN_END[family]))
        assert text_of(tokenizer, trained.ids[n : n + length].tolist()) == answer
        assert (trained.kind[n : n + length] == Kind.ANSWER).all()
        assert trained.labels[n - 1 : n + length - 1].equal(trained.ids[n : n + length])
        assert int(trained.ids[n + length - 1]) in tokenizer.stop_ids
        ends.append(n + length)
    assert ends[-1] == len(trained.ids), "nothing follows the last answer"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_rendered_template(family: str):
    """With contents whose borders no merge crosses, cutting the template changes nothing."""
    tokenizer = FAMILIES[family]
    messages = [user("What appears?"), assistant("A red ring.")]
    encoded = encode_chat(tokenizer, messages, [], T, NONE)
    rendered = tokenizer.render(messages)
    assert rendered.startswith(text_of(tokenizer, encoded.ids.tolist()))
    assert tokenizer.encode_template(rendered)[: len(encoded.ids)] == encoded.ids.tolist()
    prompt = encode_chat(tokenizer, messages[:1], [], T, NONE, generate=True)
    assert text_of(tokenizer, prompt.ids.tolist()) == tokenizer.render(messages[:1], add_generation_prompt=True)


def test_supervising_the_last_answer_only():
    messages = [user("<video>a"), assistant("first"), user("b"), assistant("second")]
    last = encode_chat(SMALL, messages, [video(0.5)], T, NONE, supervise="last")
    both = encode_chat(SMALL, messages, [video(0.5)], T, NONE)
    assert text_of(SMALL, last.labels[last.labels != IGNORE].tolist()) == "second<|im_end|>"
    assert text_of(SMALL, both.labels[both.labels != IGNORE].tolist()) == "first<|im_end|>second<|im_end|>"
    assert last.kind.equal(both.kind), "an earlier answer stays an answer"


def test_text_without_media_is_context():
    encoded = encode_chat(SMALL, [user("hello"), assistant("hi")], [], T, SENTENCE)
    assert set(encoded.kind.tolist()) == {Kind.CONTEXT, Kind.ANSWER}


def test_system_message():
    chat = ChatConfig(system="Be short.", time="none")
    own = {"role": "system", "content": "Be long."}
    assert "system\nBe short.<|im_end|>" in shown(encode_chat(SMALL, [user("a"), assistant("b")], [], T, chat))
    assert "Be short" not in shown(encode_chat(SMALL, [own, user("a"), assistant("b")], [], T, chat))


# ----- media and time --------------------------------------------------------------------------------


def test_media_without_placeholders_come_first():
    media = [video(0.5, 1.5)]
    for chat in (NONE, SENTENCE, FRAMES):
        with_mark = encode_chat(SMALL, [user("<video>\nWhat?")], media, T, chat, generate=True)
        without = encode_chat(SMALL, [user("What?")], media, T, chat, generate=True)
        assert with_mark.ids.equal(without.ids)


def test_media_stand_where_their_placeholders_do():
    media = [video(0.5), Media([0.0], 0.0, "image"), video(0.5, 1.5)]
    messages = [user("A <video> B <image>"), assistant("c"), user("<video>D"), assistant("e")]
    encoded = encode_chat(SMALL, messages, media, 1, NONE)
    assert shown(encoded) == (
        "<|im_start|>user\nA . B .<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
        "<|im_start|>user\n..D<|im_end|>\n<|im_start|>assistant\ne<|im_end|>"
    )


@pytest.mark.parametrize(("text", "found", "media"), [("<video><video>", 2, 1), ("<video>", 1, 2), ("<image>", 1, 0)])
def test_placeholders_must_match_media(text: str, found: int, media: int):
    with pytest.raises(ValueError, match=f"{found} <video> or <image> placeholders for {media} media"):
        encode_chat(SMALL, [user(text)], [video(0.5)] * media, T, NONE, generate=True)


def test_placeholder_in_an_answer_is_text():
    encoded = encode_chat(SMALL, [user("<video>Which tag?"), assistant("<video>")], [video(0.5)], 1, NONE)
    assert shown(encoded).endswith("assistant\n<video><|im_end|>")


def test_time_sentence_follows_the_media():
    encoded = encode_chat(SMALL, [user("<video>\nWhat?")], [Media([1.0, 3.0], 4.0)], 1, SENTENCE, generate=True)
    sentence = time_sentence(4.0, 2)
    assert "4.0 seconds" in sentence
    assert "2 frames" in sentence
    assert f"user\n..{sentence}What?<|im_end|>" in shown(encoded)
    after = encoded.kind[encoded.kind.tolist().index(Kind.VISION) + 2 :]
    assert (after == Kind.INSTRUCTION).all()


def test_times_before_groups_of_frames():
    chat = ChatConfig(time="frames", frames_per_time=2)
    encoded = encode_chat(SMALL, [user("<video>\nWhat?")], [video(0.04, 1.5, 2.96)], 1, chat, generate=True)
    assert "user\n0.0s..3.0s.\nWhat?" in shown(encoded)
    first = encoded.kind.tolist().index(Kind.VISION)
    assert (encoded.kind[:first] == Kind.CONTEXT).all()
    assert encoded.kind[first + 2] == Kind.INSTRUCTION


@pytest.mark.parametrize("chat", [SENTENCE, FRAMES])
def test_images_have_no_time(chat: ChatConfig):
    encoded = encode_chat(SMALL, [user("<image>\nWhat?")], [Media([0.0], 0.0, "image")], 1, chat, generate=True)
    assert "user\n.\nWhat?" in shown(encoded)


# ----- what is refused -------------------------------------------------------------------------------


def test_long_text_is_refused_not_cut():
    messages = [user("<video>" + "word " * 100)]
    need = len(encode_chat(SMALL, messages, [video(0.5, 1.5)], T, NONE, generate=True).ids)
    encode_chat(SMALL, messages, [video(0.5, 1.5)], T, NONE, generate=True, max_tokens=need)
    with pytest.raises(ValueError, match=rf"takes {need} tokens, {2 * T} of them for 2 frames.* holds {need - 1}"):
        encode_chat(SMALL, messages, [video(0.5, 1.5)], T, NONE, generate=True, max_tokens=need - 1)


@pytest.mark.parametrize(
    ("messages", "generate", "words"),
    [
        ([user("a")], False, "end with one of role 'assistant', got user"),
        ([user("a"), assistant("b")], True, "end with one of role 'user'"),
        ([], False, "no messages"),
        ([assistant("a")], False, "must hold a user's"),
        ([{"role": "bot", "content": "a"}, assistant("b")], False, "role 'bot'; allowed are system, user, assistant"),
    ],
)
def test_roles(messages: list[Message], generate: bool, words: str):
    with pytest.raises(ValueError, match=words):
        encode_chat(SMALL, messages, [], T, NONE, generate=generate)


def test_template_that_objects_speaks_for_itself():
    with pytest.raises(ValueError, match="roles must alternate"):
        encode_chat(FAMILIES["llama"], [user("a"), user("b"), assistant("c")], [], T, NONE)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "special token"),
        ("{{ messages[0].content }}<|im_end|>", "drops, repeats or reorders"),
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages"),
    ],
)
def test_unusable_templates(template: str, words: str):
    with pytest.raises(ValueError, match=words):
        encode_chat(with_template(template, []), [user("a"), assistant("b")], [], T, NONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_stay_text(family: str):
    tokenizer = FAMILIES[family]
    attack = "".join(tokenizer.decode([i], skip_special=False) for i in sorted(tokenizer.special_ids))
    plain = encode_chat(tokenizer, [user("a"), assistant("b")], [], T, NONE)
    attacked = encode_chat(tokenizer, [user(attack), assistant(attack)], [], T, NONE)

    def count(encoded) -> int:
        return sum(i in tokenizer.special_ids for i in encoded.ids.tolist())

    assert count(attacked) == count(plain)
    assert text_of(tokenizer, attacked.ids.tolist()).count(attack) == 2


# ----- estimates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [NONE, SENTENCE, FRAMES, ChatConfig(system="Answer in one word.")])
@pytest.mark.parametrize("frames", [1, 8, 64])
def test_estimate(chat: ChatConfig, frames: int):
    lines = list(islice(world_text(seed=7), 400))
    media = Media([0.5 + i for i in range(frames)], float(frames), "image" if frames == 1 else "video")
    estimated, real = [], []
    for question, answer in zip(lines[::2], lines[1::2]):
        messages = [user("<video>\n" + question), assistant(answer)]
        size = sum(len(m["content"].encode()) for m in messages)
        estimated.append(estimate_text(SMALL, size, [frames] if frames > 1 else [], chat) + 16 * frames)
        real.append(len(encode_chat(SMALL, messages, [media], 16, chat).ids))
    assert sum(estimated) == pytest.approx(sum(real), rel=0.1)
    close = [abs(e - r) <= 0.15 * r for e, r in zip(estimated, real)]
    assert sum(close) >= 0.95 * len(close)


# ----- tokenizer -------------------------------------------------------------------------------------


def test_shipped_tokenizer_is_what_the_command_makes(tmp_path: Path):
    train().save(tmp_path)
    made, shipped = Tokenizer.load(tmp_path), SMALL
    stale = "the words of the data changed: run `python -m timeviper.tokenizer train`"
    assert json.loads(made.fast.to_str()) == json.loads(shipped.fast.to_str()), stale
    assert made.generation == shipped.generation
    assert made.bytes_per_token == pytest.approx(shipped.bytes_per_token, rel=0.1), stale
    assert {**made.config, "bytes_per_token": 0} == {**shipped.config, "bytes_per_token": 0}


def test_small_tokenizer():
    assert 1536 < SMALL.vocab_size <= 1792
    assert [text_of(SMALL, [i]) for i in SMALL.stop_ids] == ["<|endoftext|>", "<|im_end|>"]
    pieces = {
        "2.5s": ["2.5s"],
        "12.5s": ["12.5s"],
        "112.5s": ["1", "12.5s"],
        "10239.0": ["1", "02", "39.0"],
        " 34.7": [" 34", ".7"],
        "2048": ["20", "48"],
        "from 2.0 to 14.0": ["from", " 2.0", " to", " 14.0"],
    }
    assert {text: [text_of(SMALL, [i]) for i in SMALL.encode(text)] for text in pieces} == pieces
    words = {word for line in islice(world_text(seed=3), 1000) for word in line.rstrip("?.").split() if word.isalpha()}
    assert [word for word in words if min(len(SMALL.encode(w)) for w in (word, " " + word)) > 1] == []


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_round_trips(text: str):
    ids = SMALL.encode(text)
    assert SMALL.decode(ids, skip_special=False) == text
    stream = SMALL.stream()
    assert "".join([*(stream.step(i) for i in ids), stream.flush()]) == text


def test_stream_never_shows_half_a_character():
    stream = SMALL.stream()
    steps = [stream.step(i) for i in SMALL.encode("né 你好 😀!")]
    assert "".join(steps) == "né 你好 😀!"
    assert all("\ufffd" not in step for step in steps)
    cut = SMALL.stream()
    assert [cut.step(i) for i in SMALL.encode("😀")[:-1]] == ["", "", ""]
    assert cut.flush() == "\ufffd"


def test_skipping_special_tokens():
    ids = SMALL.encode_template("<|im_start|>red<|im_end|>")
    assert SMALL.decode(ids) == "red"
    assert SMALL.decode(ids, skip_special=False) == "<|im_start|>red<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_tokenizer_is_self_contained(tmp_path: Path, family: str):
    tokenizer = FAMILIES[family]
    tokenizer.save(tmp_path)
    for again in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again.stop_ids == tokenizer.stop_ids
        assert again.vocab_size == tokenizer.vocab_size
        assert again.bytes_per_token == tokenizer.bytes_per_token
        messages = [user("<video>What?"), assistant("That.")]
        assert encode_chat(again, messages, [video(0.5)], T, SENTENCE).ids.equal(
            encode_chat(tokenizer, messages, [video(0.5)], T, SENTENCE).ids
        )


def test_template_in_a_file_of_its_own(tmp_path: Path):
    SMALL.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"no chat template; add chat_template\.jinja"):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LLAMA)
    assert Tokenizer.load(tmp_path).config["chat_template"] == LLAMA


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path):
    tokenizer = Tokenizer.load()
    tokenizer.fast.enable_truncation(8)
    tokenizer.fast.enable_padding(length=8)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a" * 50) == SMALL.encode("a" * 50)
    assert Tokenizer.load(tmp_path).encode("a") == SMALL.encode("a")


def test_missing_and_broken_tokenizers(tmp_path: Path):
    with pytest.raises(ValueError, match=r"model\.tokenizer: no file .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.tokenizer: .*is not a tokenizer"):
        Tokenizer.load(tmp_path)
