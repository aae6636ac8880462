"""A stage as a folder that transformers loads: the same logits and answers, also where this package is not installed,
and the same stage when it is brought back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_helpers import random_run
from hub_models import asked, code_in, load_folder, written
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from tree import ROOT
from video_helpers import write_clip

from timeviper.cli.main import app
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.reader import build_pack
from timeviper.inference.ask import LoadedModel, load
from timeviper.inference.generate import generate_pack
from timeviper.inference.question import Question, read_question
from timeviper.pack import IGNORE, Kind, Pack
from timeviper.serving.hub.read import import_transformers, is_ours
from timeviper.serving.hub.write import export_transformers
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, load_export, write_export
from timeviper.weights.lineage import read_lineage

QUESTION = "What colour is the ring?"
SIZES = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "mlp_width": 64, "feature_layer": -2}
SMALL = [f"model.towers.main.{name}={value}" for name, value in SIZES.items()]
NOT_EARLY = "model.transv.stages.early=null"
GUIDED = [f"model.transv.stages.late.{setting}" for setting in ("layer=5", "keep=0.25", "select=mamba")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"), "eval.max_new_tokens=12")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 90, options={"g": "12", "bf": "2"})


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "hub"
    export_transformers(run / "export", out, shard_bytes=1 << 20)
    return out


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with code_in(tmp_path_factory.mktemp("modules")):
        yield


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_folder(folder)


@pytest.fixture(scope="module")
def ours(run: Path) -> LoadedModel:
    return load(run, device="cpu")


def our_ids(model: LoadedModel, video: Path, question: str, count: int = 12) -> list[int]:
    """What `ask` writes, as tokens."""
    frames = model.read_video(video)
    pack = build_pack(
        model.tokenizer,
        pack_format(model.recipe),
        [{"role": "user", "content": question}],
        [frames],
        prompt_only=True,
    )
    return generate_pack(model.model, pack, count, stop_ids=model.tokenizer.stop_ids)[0].tolist()


def last_logits(model: LoadedModel, video: Path, question: str) -> torch.Tensor:
    """After the prompt, as `ask` reads it."""
    cfg, form = model.recipe.eval, pack_format(model.recipe)
    asked = Question([{"role": "user", "content": question}], [model.read_video(video)])
    piece, longest = cfg.tokens_per_piece, cfg.max_new_tokens
    _, start = read_question(model.model, model.tokenizer, form, asked, tokens_per_piece=piece, max_new_tokens=longest)
    with torch.no_grad():
        return model.model.decoder.project(start.hidden)[0]


# ---- without this package -------------------------------------------------------------------------------------


def test_it_answers_as_ask_does_where_this_package_is_not_there(
    run: Path, folder: Path, clip: Path, ours: LoadedModel, tmp_path: Path
) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/without_timeviper.py", folder, clip, QUESTION, "12", tmp_path / "out"],
        cwd=tmp_path,
        env=env | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report, logits = json.loads((tmp_path / "out.json").read_text()), load_file(tmp_path / "out.safetensors")
    assert report["hidden"] == []
    answer = ours.ask(QUESTION, clip)
    assert report["text"] == answer.text
    assert report["ids"] == our_ids(ours, clip, QUESTION)
    assert report["kept"] == answer.kept
    assert answer.text in done.stdout  # what TextStreamer showed
    wanted = last_logits(ours, clip, QUESTION)
    assert_close(logits["last"][0, 0], wanted, rtol=0, atol=2e-6)
    assert_close(logits["all"][0, -1], wanted, rtol=0, atol=1e-5)  # without a state: other roundings


# ---- the same as ours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        [NOT_EARLY, "model.transv.stages.late=null"],
        ["model.transv.stages.early.transfer=false", "model.transv.stages.late.query=question"],
        [NOT_EARLY, *GUIDED],
        ["chat.time=tokens"],
        ["chat.time=sentence", "chat.system=Answer in a word."],
        ["model.lora.rank=2"],
        ["model.towers.main.family=siglip", *SMALL],
        ["model.towers.main.family=dinov2", "model.towers.main.registers=2", *SMALL],
    ],
    ids=["off", "drop", "mamba", "time-tokens", "system", "lora", "siglip", "dinov2"],
)
def test_every_kind_of_model_gives_the_same(settings: list[str], clip: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", *settings)
    model = load(run, device="cpu")
    if model.model.times is not None:
        export = run / "export/model.safetensors"
        state = load_file(export)
        torch.manual_seed(1)
        state["times.weight"].normal_()
        save_file(state, export)
        model = load(run, device="cpu")
    export_transformers(run / "export", tmp_path / "hub")
    theirs, processor = load_folder(tmp_path / "hub")
    inputs = asked(processor, clip, QUESTION)
    with torch.no_grad():
        found = theirs(**inputs, logits_to_keep=1).logits[0, 0]
    assert_close(found, last_logits(model, clip, QUESTION), rtol=0, atol=2e-6)
    assert written(theirs, inputs, max_new_tokens=8)[0] == our_ids(model, clip, QUESTION, 8)


def test_a_long_prompt_goes_piece_by_piece_as_in_ask(run: Path, loaded: tuple[Any, Any], clip: Path) -> None:
    model, processor = loaded
    overrides = ["data.frames.fps=10", "data.frames.max_frames=80", "eval.tokens_per_piece=140"]
    ours = load(run, device="cpu", overrides=overrides)
    model.tokens_per_piece = 140
    try:
        inputs = asked(processor, clip, QUESTION, fps=10, max_frames=80)
        assert inputs["pixel_values_videos"].shape[0] == 80
        ids = written(model, inputs, max_new_tokens=12)[0]
    finally:
        model.tokens_per_piece = ours.recipe.eval.tokens_per_piece
    assert processor.decode(ids, skip_special_tokens=True) == ours.ask(QUESTION, clip, max_new_tokens=12).text


def test_bfloat16_keeps_wide_what_ask_keeps_wide(run: Path, folder: Path, clip: Path) -> None:
    ours, _, _ = load_export(run / "export", dtype="bfloat16")
    theirs, processor = load_folder(folder, dtype=torch.bfloat16)
    wanted = {f"model.{name}": p.dtype for name, p in ours.named_parameters()}
    assert {name: p.dtype for name, p in theirs.named_parameters()} == wanted
    short = load(run, device="cpu", dtype="bfloat16")
    inputs = asked(processor, clip, QUESTION).to(torch.bfloat16)
    with torch.no_grad():
        found = theirs(**inputs, logits_to_keep=1).logits[0, 0]
    assert_close(found, last_logits(short, clip, QUESTION), rtol=0, atol=0)


# ---- batches, options, training ---------------------------------------------------------------------------------


def test_rows_of_a_batch_answer_as_alone(loaded: tuple[Any, Any], clip: Path) -> None:
    model, processor = loaded
    talks = [
        [{"role": "user", "content": [{"type": "text", "text": "Who is there at all, and since when?"}]}],
        [{"role": "user", "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": QUESTION}]}],
        [{"role": "user", "content": [{"type": "video", "url": f"file://{clip}"}, {"type": "text", "text": "Why?"}]}],
    ]
    options: dict[str, Any] = dict(add_generation_prompt=True, tokenize=True, return_dict=True)
    batch = processor.apply_chat_template(talks, **options)
    assert batch["frame_counts"].tolist() == [0, 9, 9]
    alone = [written(model, processor.apply_chat_template(talk, **options), max_new_tokens=10)[0] for talk in talks]
    assert written(model, batch, max_new_tokens=10) == alone
    with torch.no_grad():
        every, last = model(**batch).logits, model(**batch, logits_to_keep=1).logits
    assert_close(every[:, -1], last[:, 0], rtol=0, atol=1e-5)
    assert every.shape == (*batch["input_ids"].shape, 1792)
    assert bool((every[0, 0] == 0).all())  # padding


def test_several_answers_to_a_question(loaded: tuple[Any, Any], clip: Path) -> None:
    model, processor = loaded
    inputs = asked(processor, clip, QUESTION)
    torch.manual_seed(0)
    found = written(model, inputs, max_new_tokens=6, do_sample=True, num_return_sequences=3)
    assert len({tuple(ids) for ids in found}) > 1
    greedy = written(model, inputs, max_new_tokens=6)
    assert written(model, inputs, max_new_tokens=6, num_return_sequences=2, do_sample=True, top_k=1) == greedy * 2


def test_labels_give_the_loss_of_training(loaded: tuple[Any, Any], ours: LoadedModel, clip: Path) -> None:
    model, processor = loaded
    answer = {"role": "assistant", "content": "blue"}
    ask = {"role": "user", "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": QUESTION}]}
    talks = [[ask, answer], [ask, {"role": "assistant", "content": "a red one, I think"}]]
    batch = processor.apply_chat_template(talks, tokenize=True, return_dict=True)
    labels = batch["input_ids"].masked_fill(batch["token_kinds"] != Kind.ANSWER, IGNORE)
    model.train()
    out = model(**batch, labels=labels)
    out.loss.backward()
    model.eval()
    assert all(p.grad is not None for n, p in model.named_parameters() if "decoder.blocks" in n)
    model.zero_grad()
    form = replace(pack_format(ours.recipe), supervise="all")
    frames = ours.read_video(clip)
    packs = [
        build_pack(ours.tokenizer, form, [{"role": "user", "content": QUESTION}, talk[1]], [frames]) for talk in talks
    ]
    pack = Pack.join(packs)
    with torch.no_grad():
        wanted = ours.model(pack)
    assert_close(out.loss.detach(), wanted.loss_sum / wanted.num_labels)


def test_what_a_person_writes_opens_no_turn_and_no_video(loaded: tuple[Any, Any], clip: Path) -> None:
    _, processor = loaded
    plain = asked(processor, clip, "a <|im_end|> b <video> c")
    assert int((plain["token_kinds"] == Kind.VISION).sum()) == 36
    ends = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    usual = asked(processor, clip, "abc")
    assert int((plain["input_ids"] == ends).sum()) == int((usual["input_ids"] == ends).sum())


def test_other_ways_to_say_the_same(loaded: tuple[Any, Any], clip: Path) -> None:
    import base64

    _, processor = loaded
    wanted = asked(processor, clip, QUESTION)
    body = base64.b64encode(clip.read_bytes()).decode()
    forms = [
        [
            {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{body}"}},
            {"type": "text", "text": QUESTION},
        ],
        [{"type": "video", "path": str(clip)}, {"type": "input_text", "text": QUESTION}],
    ]
    for content in forms:
        found = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    for text in (
        QUESTION,
        processor.apply_chat_template([{"role": "user", "content": forms[1]}], add_generation_prompt=True),
    ):
        found = processor(text=text, videos=str(clip), return_tensors="pt")
        assert all(torch.equal(found[name], value) for name, value in wanted.items()), text


def test_the_jinja_template_says_the_same_as_the_processor(loaded: tuple[Any, Any], clip: Path) -> None:
    _, processor = loaded
    talk = [
        {"role": "user", "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And now?"},
    ]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert processor.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) == text
    assert f"<video>\n{QUESTION}" in text


def test_frames_as_asked_for(loaded: tuple[Any, Any], clip: Path) -> None:
    _, processor = loaded
    assert asked(processor, clip, QUESTION, num_frames=20)["frame_counts"].tolist() == [20]
    assert asked(processor, clip, QUESTION, fps=2, max_frames=7)["frame_counts"].tolist() == [7]
    pixels = torch.zeros(30, 40, 40, 3, dtype=torch.uint8)
    found = processor(text=QUESTION, videos=pixels, video_metadata={"fps": 10})
    assert found["frame_times"].tolist() == [500_000_000, 1_500_000_000, 2_500_000_000]
    for options, says in (
        (dict(fps=1, num_frames=2), "exclude each other"),
        (dict(num_frames=-1), "num_frames must be above 0"),
        (dict(size=3), "size: no option here"),
        (dict(do_sample_frames=False), "always chosen"),
    ):
        with pytest.raises(ValueError, match=says):
            asked(processor, clip, QUESTION, **options)
    with pytest.raises(ValueError, match="video_metadata"):
        processor(text=QUESTION, videos=pixels)
    with pytest.raises(ValueError, match="tools"):
        processor.apply_chat_template([{"role": "user", "content": "a"}], tools=[{}])
    with pytest.raises(ValueError, match="the context holds"):
        processor(text="a " * 20000)


# ---- and back ---------------------------------------------------------------------------------------------------


def test_the_folder_comes_back_as_the_stage(
    run: Path, folder: Path, ours: LoadedModel, clip: Path, tmp_path: Path
) -> None:
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    done = import_transformers(folder, tmp_path / "back")
    assert not done.changed
    before, after = read_lineage(run / "export"), read_lineage(tmp_path / "back")
    assert after == before
    assert load_recipe(tmp_path / "back/config.yaml").model == load_recipe(run / "export/config.yaml").model
    assert load(tmp_path / "back", device="cpu").ask(QUESTION, clip).text == ours.ask(QUESTION, clip).text


def test_what_transformers_saved_comes_back_too(
    run: Path, loaded: tuple[Any, Any], ours: LoadedModel, clip: Path, tmp_path: Path
) -> None:
    model, processor = loaded
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, processor = load_folder(tmp_path / "saved")
    inputs = asked(processor, clip, QUESTION)
    assert written(again, inputs) == [our_ids(ours, clip, QUESTION)]
    assert not import_transformers(tmp_path / "saved", tmp_path / "back").changed
    with torch.no_grad():
        again.model.decoder.norm_f.weight.mul_(2)
    again.save_pretrained(tmp_path / "more")
    processor.save_pretrained(tmp_path / "more")
    done = import_transformers(tmp_path / "more", tmp_path / "trained")
    assert done.changed
    assert read_lineage(tmp_path / "trained")["weights"] == done.weights != read_lineage(run / "export")["weights"]


def test_paths_of_the_machine_stay_at_home(clip: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", "out=/home/someone/runs", f"data.cache={tmp_path}")
    export_transformers(run / "export", tmp_path / "hub")
    for file in ("config.json", "README.md"):
        text = (tmp_path / "hub" / file).read_text()
        assert "someone" not in text
        assert str(tmp_path) not in text
    assert json.loads((tmp_path / "hub/config.json").read_text())["recipe"]["out"] == "runs"


def test_the_card_tells_use_lineage_and_recipe(run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for said in ("AutoProcessor", read_lineage(run / "export")["weights"], "select: uniform", "1,336,402 parameters"):
        assert said in card


# ---- what goes wrong --------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a person reads on stderr."""
    from timeviper.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["timeviper", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert ended.value.code in (1, 2), app
    return capsys.readouterr().err


def test_what_cannot_be_exported(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def export(source: Path, *more: str) -> str:
        return command(capsys, "export", source, tmp_path / "x", "--form", "transformers", *more)

    assert "is there already and is not overwritten" in command(capsys, "export", run, folder, "--form", "transformers")
    assert "is not an export" in export(tmp_path / "nowhere")
    assert "takes neither --checkpoint" in export(run, "--checkpoint", "latest")
    assert "must be decoder or transformers" in command(capsys, "export", run, tmp_path / "x", "--form", "onnx")
    tower = tmp_path / "tower/export"
    recipe = load_recipe("tiny/stage0_tower")
    write_export(tower, build_model(recipe).state_dict(), recipe, Tokenizer.load(), 0)
    assert "is a vision tower without a language model" in export(tower)
    broken = random_run(tmp_path / "broken")
    state = load_file(broken / "export/model.safetensors")
    state.pop("decoder.norm_f.weight")
    state["decoder.blocks.0.norm.weight"][0] = float("nan")
    save_file(state, broken / "export/model.safetensors")
    assert "missing: decoder.norm_f.weight" in export(broken)
    save_file(state | {"decoder.norm_f.weight": torch.ones(128)}, broken / "export/model.safetensors")
    assert "decoder.blocks.0.norm.weight holds NaN" in export(broken)
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_imported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    def changed(number: int, **keys: Any) -> Path:
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        raw = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({k: v for k, v in (raw | keys).items() if v is not None}))
        return copy

    def imports(source: Path) -> str:
        return command(capsys, "import", source, tmp_path / "x")

    assert is_ours(folder)
    assert not is_ours(tmp_path)
    assert "form is 2, and this version reads 1 to 1: a later version" in imports(changed(0, form=2))
    assert "hidden_size is 64, but recipe.model.decoder.width is 128" in imports(changed(1, hidden_size=64))
    assert "recipe is missing" in imports(changed(2, recipe=None))
    assert "lineage is missing" in imports(changed(3, lineage=None))
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    wider = json.loads(json.dumps(recipe))
    wider["model"]["decoder"]["mlp_width"] = 400
    assert "the recipe asks for [400, 128]" in imports(changed(4, recipe=wider))
    later = json.loads(json.dumps(recipe))
    later["model"]["decoder"]["experts"] = 8
    assert "recipe.model.decoder.experts is no setting of this version" in imports(changed(5, recipe=later))
    lost = changed(6)
    shard = sorted(lost.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"lacks {shard.name}" in imports(lost)
    cut = changed(7)
    shard = sorted(cut.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "is truncated" in imports(cut)
    assert "is there already" in command(capsys, "import", folder, folder)
    assert not (tmp_path / "x").exists()


def test_transformers_is_told_of_a_folder_of_a_later_form(folder: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoConfig

    shutil.copytree(folder, tmp_path / "later")
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "later/config.json").write_text(json.dumps(raw | {"num_hidden_layers": 12}))
    with pytest.raises(ValueError, match="num_hidden_layers is 12, but blocks of recipe"):
        AutoConfig.from_pretrained(tmp_path / "later", trust_remote_code=True)
