"""Recipe files: layers, origins, all problems at once; and every recipe that ships."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from tree import ROOT

from timeviper.config import SourceConfig
from timeviper.config.load import dump, explain, from_dict, load_recipe
from timeviper.errors import ConfigError
from timeviper.training.inputs import check_inputs, missing

SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))
STAGE2 = "recipes/tiny/stage2_instruct.yaml"
MINIMAL = """
name: test
size: tiny
model: {preset: tiny}
data:
  sources:
    a: {shards: somewhere}
  val:
    a: {shards: elsewhere}
  frames: {max_frames: 8}
train: {trainable: [projector, decoder]}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a recipe below the test's folder; `more` follows the minimal one."""

    def write(name: str, text: str = "", minimal: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((MINIMAL if minimal else "") + text)
        return path

    return write


def problems(path: str | Path, *overrides: str) -> dict[str, str]:
    """Key -> the rest of each problem."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return {p.key: f"{p.value} | {p.message} | {p.origin}" for p in caught.value.problems}


# ---- those that ship --------------------------------------------------------------------------------------


def test_no_shipped_recipe_is_missed() -> None:
    folders = {folder: sum(path.parent.name == folder for path in SHIPPED) for folder in ("tiny", "nano9b")}
    assert folders == {"tiny": 7, "nano9b": 3}
    assert len(SHIPPED) == 19


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_recipe_is_found_by_its_name_from_any_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    for written in (name, f"{name}.yaml", f"recipes/{name}.yaml"):
        assert load_recipe(written) == load_recipe(path)


def test_a_file_that_is_there_goes_before_a_shipped_recipe(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("recipes/tiny/stage2_instruct.yaml").parents[2])
    assert load_recipe("recipes/tiny/stage2_instruct.yaml").name == "test"
    assert load_recipe("tiny/stage2_instruct").name == "stage2_instruct"


def test_a_recipe_of_ones_own_extends_a_shipped_one(write) -> None:
    path = write("mine.yaml", "extends: tiny/stage2_instruct\nname: mine\n", minimal=False)
    recipe = load_recipe(path)
    assert (recipe.name, recipe.model.preset, recipe.train.steps) == ("mine", "tiny", 700)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny/stage2", r"did you mean tiny/stage2_instruct\? \(the package has .*tiny/stage0_tower"),
        ("stage2_instruct.yaml", r"did you mean nano9b/stage2_instruct or tiny/stage2_instruct\?"),
        ("experiments/lroa", r"did you mean experiments/lora\?"),
        ("nowhere/r.yaml", r"there is no recipe nowhere/r\.yaml; the package has experiments/glimpses_drop, "),
    ],
)
def test_a_name_that_is_none_says_which_there_are(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=says):
        load_recipe(name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipe_is_valid_and_says_what_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe(path)
    assert recipe.about
    assert recipe.name == path.stem
    assert not caplog.records, "a shipped recipe warns of nothing"
    header = path.read_text().split("\nname:")[0]
    relative = path.relative_to(ROOT)
    for word in ("trains", "frozen", "needs", "run ", "override", str(relative)):
        assert word in header, f"{relative}: the header lacks {word!r}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_override_in_the_header_works(path: Path) -> None:
    lines = path.read_text().splitlines()
    command = next(line for line in lines if line.startswith("#   override")).split("override", 1)[1].split()
    assert command[:3] == ["timeviper", "train", str(path.relative_to(ROOT))]
    load_recipe(path, command[3:])


def test_published_recipe_has_the_published_numbers() -> None:
    stage1, stage2, stage3 = (load_recipe(path) for path in SHIPPED if path.parent.name == "nano9b")
    for recipe in (stage1, stage2, stage3):
        optim = recipe.optim
        assert (optim.lr, optim.weight_decay, optim.warmup, optim.schedule) == (1e-5, 0.01, 0.03, "cosine")
        assert "tower" not in recipe.train.trainable
    assert stage1.train.trainable == ["projector"]
    assert not stage1.model.transv.stages
    assert stage2.optim.lrs == {"transv": 5e-5}
    assert (stage2.data.frames.fps, stage2.data.frames.max_frames) == (1.0, 256)
    early, late = stage2.model.transv.stages.values()
    assert (early.layer, early.keep, early.select) == (7, 0.5, "uniform")
    assert (late.layer, late.keep, late.select) == (39, 0.1, "attention")
    assert stage3.data.frames.max_frames == 10_240


def test_stages_start_from_the_export_of_the_stage_before() -> None:
    for size, first in (("tiny", 0), ("nano9b", 0)):
        chain = [load_recipe(path) for path in SHIPPED if path.parent.name == size and path.stem.startswith("stage")]
        for before, after in zip(chain[first:], chain[first + 1 :]):
            assert after.train.init_from == f"{before.run_dir}/export"


# ---- layers -----------------------------------------------------------------------------------------------


def test_later_layers_win(write) -> None:
    base = write("base.yaml", "optim: {lr: 1.0e-3, clip: 2.0}\nseed: 1\n")
    recipe = write("top.yaml", "extends: base.yaml\nname: top\noptim: {lr: 2.0e-3}\n", minimal=False)
    loaded = load_recipe(recipe, ["seed=7", "seed=8"])
    assert (loaded.name, loaded.seed) == ("top", 8)
    assert (loaded.optim.lr, loaded.optim.clip, loaded.optim.beta1) == (2e-3, 2.0, 0.9)
    assert loaded.model.decoder.width == 128
    assert load_recipe(base).optim.lr == 1e-3


def test_a_preset_is_below_the_recipe_wherever_it_is_named(write) -> None:
    path = write("r.yaml", "")
    assert load_recipe(path, ["model.decoder.mlp_width=256"]).model.decoder.mlp_width == 256
    switched = load_recipe(path, ["model.preset=smollm2_135m", "model.decoder.max_tokens=4096"])
    assert (switched.model.decoder.family, switched.model.decoder.max_tokens) == ("llama", 4096)


def test_extends_is_relative_to_its_file_and_one_level_deep(write) -> None:
    write("base/root.yaml")
    middle = write("mine/middle.yaml", "extends: ../base/root.yaml\nname: middle\n", minimal=False)
    assert load_recipe(middle).name == "middle"
    top = write("top.yaml", "extends: mine/middle.yaml\nname: top\n", minimal=False)
    message = problems(top)["extends"]
    assert "middle.yaml" in message
    assert "../base/root.yaml" in message
    assert "top.yaml:1" in message


def test_extends_that_is_not_there(write) -> None:
    assert "there is no file" in problems(write("r.yaml", "extends: nowhere.yaml\n"))["extends"]
    assert "one file" in problems(write("s.yaml", "extends: [a, b]\n"))["extends"]


def test_named_entries_are_joined_and_null_removes(write) -> None:
    base = write("base.yaml", "optim: {lrs: {projector: 1.0e-3}}\n")
    write("top.yaml", "extends: base.yaml\ndata: {sources: {a: null, b: {shards: there}}}\n", minimal=False)
    top = load_recipe(base.with_name("top.yaml"), ["optim.lrs.projector=null"])
    assert list(top.data.sources) == ["b"]
    assert top.optim.lrs == {}
    again = load_recipe(base.with_name("top.yaml"), ["data.sources.a.shards=back"])
    assert list(again.data.sources) == ["a", "b"], "in its old place"


def test_the_command_line_reaches_named_entries() -> None:
    recipe = load_recipe(STAGE2, ["data.sources.mine.shards=data/mine", "train.trainable=[projector,transv]"])
    mine = recipe.data.sources["mine"]
    assert (mine.shards, mine.weight) == ("data/mine", 1.0)
    assert recipe.train.trainable == ["projector", "transv"]


def test_numbers_in_scientific_notation_are_numbers(write) -> None:
    assert load_recipe(write("r.yaml", "optim: {lr: 1e-5}\n")).optim.lr == 1e-5
    assert load_recipe(STAGE2, ["optim.lr=3e-4"]).optim.lr == 3e-4


# ---- problems ---------------------------------------------------------------------------------------------


def test_all_problems_are_raised_together_with_their_origin(write) -> None:
    write("base.yaml", "optim: {warmup: 3}\n")
    path = write("r.yaml", "extends: base.yaml\noptim:\n  learning_rate: 1e-4\ntrain:\n  steps: many\n", minimal=False)
    found = problems(path, "data.frames.fpss=2", "log.csv=perhaps")
    assert list(found) == ["optim.learning_rate", "train.steps", "data.frames.fpss", "log.csv", "optim.warmup"]
    assert f"{path}:3" in found["optim.learning_rate"]
    assert f"{path}:5" in found["train.steps"]
    assert "Did you mean data.frames.fps?" in found["data.frames.fpss"]
    assert "command line" in found["log.csv"]
    assert "true or false" in found["log.csv"]
    assert "base.yaml:12" in found["optim.warmup"]


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("optim.lrr=1", "optim.lrr", "Did you mean optim.lr?"),
        ("warmup=0.1", "warmup", "Did you mean optim.warmup?"),
        ("zzz=1", "zzz", "Known here: name, size"),
        ("train.steps=1e3", "train.steps", "Write 1000."),
        ("train.steps=1.5", "train.steps", "a whole number"),
        ("train.steps=null", "train.steps", "a whole number"),
        ("optim.lr=fast", "optim.lr", "a number"),
        ("train.trainable=decoder", "train.trainable", "such as [a, b]"),
        ("model.decoder.family=mamba", "model.decoder.family", "one of nemotron_h, llama, qwen2"),
        ("optim=3", "optim", "a section with name, lr, lrs"),
        ("data.sources=null", "data.sources", "a section of names"),
        ("data.sources.videos.weigth=2", "data.sources.videos.weigth", "Did you mean data.sources.videos.weight?"),
        ("data.sources.a b.weight=2", "data.sources.a b", "letters, digits"),
        ("model.preset=tinny", "model.preset", "Did you mean tiny?"),
        ("model.preset=null", "model.preset", "unknown size"),
        ("model.preset=[tiny]", "model.preset", "unknown size"),
        ("optim.lr.x=1", "optim.lr", "must be a number"),
        ("seed=???", "seed", "missing"),
        ("--optim.lr=3", "--optim.lr=3", "write optim.lr=3"),
        ("optim.lr", "optim.lr", "write optim.lr=VALUE"),
        ("seed=${nowhere}", "seed", "nowhere"),
        ("optim.lrs={transv: [1}", "optim.lrs", "cannot be read"),
    ],
)
def test_wrong_overrides(override: str, key: str, says: str) -> None:
    found = problems(STAGE2, override)
    assert list(found) == [key]
    assert says in found[key]
    if "${" not in override:
        assert "command line" in found[key]


def test_what_only_follows_from_another_problem_is_left_out(write) -> None:
    path = write("r.yaml", "model2: {}\n").read_text().replace("sources:", "source:")
    found = problems(write("s.yaml", path, minimal=False))
    assert list(found) == ["data.source", "model2"]


def test_a_section_left_empty_is_named(write) -> None:
    assert "delete the line" in problems(write("r.yaml", "optim:\n"))["optim"]


def test_nothing_behind_the_equals_sign_is_empty_text() -> None:
    """As a shell leaves key="" behind; null is written out."""
    assert load_recipe(STAGE2, ["train.init_from="]).train.init_from == ""
    assert "clips" not in load_recipe(STAGE2, ["data.sources.clips=null"]).data.sources
    with pytest.raises(ConfigError, match=r"train\.steps"):
        load_recipe(STAGE2, ["train.steps="])


def test_files_that_are_no_recipes(write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*stage2_instruct\.yaml"):
        load_recipe("recipes/tiny/stage2.yaml")
    with pytest.raises(FileNotFoundError, match=r"the package has experiments/.*tiny/stage3_long"):
        load_recipe(tmp_path / "nothing" / "r.yaml")
    with pytest.raises(FileNotFoundError, match="tiny"):
        load_recipe("recipes/tiny")
    assert "not valid YAML" in next(iter(problems(write("a.yaml", "optim: {lr: [1}\n")).values()))
    assert "optim: {lr: ...}" in problems(write("f.yaml", "optim.lr: 3\n"))["optim.lr"]
    for i, text in enumerate(("null: 3\n", "\0", "[a]: 1\n", "a: *b\n", "a: &x [*x]\n", "\t- x\n", "%YAML 9")):
        assert "not valid YAML" in problems(write(f"g{i}.yaml", text, minimal=False))["line 1"]
    assert "a mapping" in problems(write("b.yaml", "- a\n- b\n", minimal=False))["the whole file"]
    assert "duplicate key" in next(iter(problems(write("c.yaml", "name: twice\n")).values()))
    assert "data.sources" in problems(write("d.yaml", "# nothing\n", minimal=False))
    (tmp_path / "e.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "UTF-8" in problems(tmp_path / "e.yaml")["the whole file"]


def test_the_message_reads_well() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(STAGE2, ["optim.lrr=0.1", "train.steps=x"])
    assert str(caught.value).splitlines() == [
        "recipes/tiny/stage2_instruct.yaml: 2 problems",
        "  1. optim.lrr = 0.1  [command line]",
        "      unknown key. Did you mean optim.lr?",
        "  2. train.steps = x  [command line]",
        "      must be a whole number.",
    ]


def test_warnings_name_the_key_and_let_it_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_recipe(STAGE2, ["optim.lrs.tower=1e-3"])
    assert "optim.lrs.tower = 0.001  [command line]" in caplog.text
    assert "tower is not in train.trainable" in caplog.text


# ---- inputs -----------------------------------------------------------------------------------------------


def test_all_that_is_missing_on_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage1, stage2, _ = (load_recipe(path) for path in SHIPPED if path.parent.name == "nano9b")
    tiny = load_recipe(STAGE2)
    monkeypatch.chdir(tmp_path)
    weights, shards = missing(stage1)  # each is one script's work, and said once
    assert weights.key == "model.tokenizer and 2 more"
    assert "recipes/nano9b/data/weights.sh" in weights.message
    assert shards.key == "data.sources.captions.shards and 1 more"
    assert "docs/nano9b-data.md" in shards.message
    assert "make train-stage1 SIZE=nano9b" in str(list(missing(stage2))[-1])
    with pytest.raises(ConfigError, match="make shards") as caught:
        check_inputs(tiny)
    assert "make train-stage1 SIZE=tiny" in str(caught.value)


def test_shards_are_found_in_a_folder_by_a_glob_or_far_away(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").touch()
    (tmp_path / "export").mkdir()
    recipe = load_recipe(STAGE2, [f"train.init_from={tmp_path / 'export'}"])
    for where in (str(tmp_path), f"{tmp_path}/a-*.tar", "s3://bucket/shards"):
        recipe.data.sources = recipe.data.val = {"a": SourceConfig(where)}
        check_inputs(recipe)
    for where in (f"{tmp_path}/b-*.tar", str(tmp_path / "export")):
        recipe.data.sources = {"a": SourceConfig(where)}
        with pytest.raises(ConfigError, match="there are no shards"):
            check_inputs(recipe)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("stage3_long", "`timeviper shards world data/long --kind long` draws them"),
        ("glimpses", "`timeviper shards world data/glimpses --kind glimpses` draws them"),
        ("footage", "`timeviper shards needles data/footage` makes them from your videos"),
    ],
)
def test_what_makes_shards_that_are_missing_is_named(
    name: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=made):
        check_inputs(load_recipe(ROOT / f"recipes/tiny/{name}.yaml"))


def test_classes_that_are_not_there_are_named_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_that_breaks.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "mine_that_works.py").write_text("class Ema:\n    pass\n")
    recipe = load_recipe(
        STAGE2,
        [
            "callbacks.own.ema.callback=mine_that_works:Ema",
            "callbacks.own.eam.callback=mine_that_works:Eam",
            "log.loggers.w.logger=no_such_module:Logger",
            "data.sources.mine.dataset=mine_that_breaks:Clips",
        ],
    )
    found = {problem.key: problem.message for problem in missing(recipe)}
    assert "the module mine_that_works has no Eam" in found["callbacks.own.eam.callback"]
    assert "cannot import no_such_module" in found["log.loggers.w.logger"]
    assert "ZeroDivisionError: division by zero" in found["data.sources.mine.dataset"]
    assert "mine_that_breaks.py, line 2)" in found["data.sources.mine.dataset"]
    assert "callbacks.own.ema.callback" not in found


@pytest.mark.parametrize(
    ("folder", "says"),
    [("{tmp}/file/run", "{tmp}/file: Not a directory"), ("/proc/run", "/proc: "), ("{tmp}/a/b", "")],
)
def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path, folder: str, says: str) -> None:
    (tmp_path / "file").touch()
    recipe = load_recipe(STAGE2, [f"out={folder.format(tmp=tmp_path)}"])
    (found,) = [problem.message for problem in missing(recipe) if problem.key == "out"] or [""]
    assert says.format(tmp=tmp_path) in found
    assert bool(found) == bool(says)


# ---- dump and explain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_dumped_recipe_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    dump(recipe, tmp_path / "config.yaml")
    assert from_dict(yaml.safe_load((tmp_path / "config.yaml").read_text())) == recipe
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_a_dump_remembers_what_was_removed_from_the_preset(tmp_path: Path) -> None:
    recipe = load_recipe(STAGE2, ["model.towers.main=null", "model.towers.other.tokens=4"])
    assert list(recipe.model.towers) == ["other"]
    dump(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_from_dict_names_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="Did you mean optim"):
        from_dict({"optmi": {"lr": 1}}, "runs/x/config.yaml")


def test_explain_tells_value_origin_and_meaning() -> None:
    rows = {row.key: row for row in explain(STAGE2, ["optim.lr=3e-3"])}
    assert (rows["optim.lr"].value, rows["optim.lr"].origin) == (3e-3, "command line")
    assert rows["model.decoder.width"].origin == "preset tiny"
    assert rows["model.transv.stages.early.keep"].origin.startswith(f"{STAGE2}:")
    assert rows["optim.beta1"].origin == "default"
    assert "Peak learning rate" in rows["optim.lr"].doc
    assert all(row.doc for row in rows.values())


def test_explain_of_an_extending_recipe_points_to_both_files() -> None:
    rows = {row.key: row.origin for row in explain("recipes/experiments/paper_form.yaml")}
    assert rows["model.transv.prenorm"].startswith("recipes/experiments/paper_form.yaml:")
    assert "tiny/stage2_instruct.yaml:" in rows["train.steps"]
