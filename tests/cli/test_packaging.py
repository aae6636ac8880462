"""The shape of the repository: what is installed, what is imported, what `make` would do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import typer
from tree import ROOT

from timeviper.cli.main import app

LINKED = ("kernels", "datamodules", "callbacks", "recipes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = ("mamba_ssm", "causal_conv1d", "flash_attn", "peft")
NEVER = ("torchvision", "timm", "PIL")
FILES = sorted(p for top in ("timeviper", *LINKED) for p in (ROOT / top).rglob("*.py") if not p.parent.is_symlink())


def make(*args: str) -> str:
    """What make would run."""
    done = subprocess.run(["make", "-n", *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["train", "train-stage2", "eval"])
def test_several_nodes_without_a_meeting_place_are_an_error(target: str) -> None:
    done = subprocess.run(["make", "-n", target, "NNODES=2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    assert "needs HEAD=host:port" in done.stderr
    assert "--rdzv-endpoint a:1" in make("train-stage2", "NNODES=2", "HEAD=a:1")
    assert "--standalone" in make("train-stage2", "NPROC=2")
    make("help", "NNODES=2")


def targets() -> list[str]:
    return re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", LINKED)
def test_root_folders_are_reached_through_relative_links_only(name: str) -> None:
    link = ROOT / "timeviper" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert not (ROOT / name / "__init__.py").exists(), "it would shadow packages of the same name"


def test_the_root_shadows_no_installed_package() -> None:
    """A distribution named `kernels` is looked for by transformers: ours must not be found in its place."""
    code = (
        "import importlib.util as u\n"
        "spec = u.find_spec('kernels')\n"
        "print(spec and spec.origin)\n"
        "from transformers import SiglipVisionConfig, SiglipVisionModel\n"
        "SiglipVisionModel(SiglipVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        " num_attention_heads=2, image_size=8, patch_size=4))\n"
        "print('built')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    origin, built = done.stdout.split()
    assert origin == "None" or not Path(origin).is_relative_to(ROOT)
    assert built == "built"


def test_every_module_imports_without_optional_packages() -> None:
    names = set()
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "timeviper" else ("timeviper", *parts)
        names.add(".".join(parts).removesuffix(".__init__"))
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({(*OPTIONAL, *NEVER)!r}))\n"  # None in sys.modules: the import fails
        f"[importlib.import_module(name) for name in {sorted(names)!r}]\n"
        f"print(len({sorted(names)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names) > 30


def test_optional_packages_are_imported_in_kernels_only_and_some_never() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in (name.split(".")[0] for name in names):
                assert top not in NEVER, f"{path}: {top}"
                assert top not in OPTIONAL or path.parent.name == "kernels", f"{path}: {top}"


@pytest.mark.parametrize("name", LINKED)
def test_a_link_that_was_checked_out_as_a_file_is_named(name: str, tmp_path: Path) -> None:
    package = tmp_path / "timeviper"
    package.mkdir()
    for file in ("__init__.py", "package.py"):
        (package / file).write_bytes((ROOT / "timeviper" / file).read_bytes())
    (package / name).write_text(f"../{name}")
    done = subprocess.run([sys.executable, "-c", "import timeviper"], cwd=tmp_path, capture_output=True, text=True)
    assert f"ImportError: timeviper/{name} is a plain file that should be a link" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE", "timeviper", *LINKED):
        (folder / name).symlink_to(ROOT / name)
    # In this process's environment: a build environment of its own would need the network.
    code = "from setuptools.build_meta import *; build_wheel('dist'); build_sdist('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def shipped() -> set[str]:
    """What must be in both: modules, recipes and the tokenizer."""
    linked = [path for name in LINKED for path in (ROOT / name).rglob("*") if path.is_file()]
    files = {f"timeviper/{path.relative_to(ROOT).as_posix()}" for path in linked if "__pycache__" not in path.parts}
    return files | {path.relative_to(ROOT).as_posix() for path in (ROOT / "timeviper" / "assets").glob("*.json")}


def test_the_wheel_has_the_linked_folders_below_timeviper_and_nothing_beside_it(built: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"timeviper"}
    assert shipped() - names == set()
    assert {"timeviper/recipes/tiny/stage0_tower.yaml", "timeviper/assets/tokenizer.json"} <= shipped()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_the_linked_folders_as_folders(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as tar:
        assert not [member.name for member in tar if member.issym()]
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert shipped() - names == set()
    assert "LICENSE" in names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installed_package_trains_in_an_empty_folder(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()

    def python(*args: str, path: str = "") -> str:
        env = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([sys.executable, *args], cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{args}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def timeviper(*args: str) -> str:
        return python("-m", "timeviper.cli", *args, path=str(installed))

    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    python("-m", "pip", "install", *offline, "--target", str(installed), str(built[kind]))
    assert "Peak learning rate" in timeviper("explain", "tiny/stage2_instruct")
    timeviper("shards", "world", "data/world", "--scale", "small")
    assert "2/2" in timeviper("train", "tiny/stage0_tower", "train.steps=2", "train.validate_samples=4")
    code = (
        "import timeviper\n"
        "from timeviper import ask, load\n"
        "try: load('runs/tiny/stage0_tower')\n"
        "except ValueError as tower: print(timeviper.__file__, tower, sep='\\n')"
    )
    place, says = python("-c", code, path=str(installed)).splitlines()
    assert Path(place).is_relative_to(installed)
    assert says.endswith("is a vision tower without a language model; it cannot answer questions")


def test_constraints_pin_every_direct_dependency_and_no_cuda() -> None:
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = [re.split(r"[\[><=!]", requirement)[0].lower() for requirement in wanted]
    assert [name for name in names if name not in pins] == []
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    assert pins["torch"] == "2.13.0"


def test_versions_agree() -> None:
    import timeviper

    assert f"## [{timeviper.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


# ---- make -------------------------------------------------------------------------------------------------


def test_help_is_the_default_and_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = targets()
    for name in ("setup", "check", "test", "smoke", "train-stage2", "eval", "ask", "shards", "doctor", "explain"):
        assert name in names
    assert all(f"make {name} " in listed for name in names)


@pytest.mark.parametrize("target", targets())
def test_every_target_is_well_formed(target: str) -> None:
    extra = {"ask": ["VIDEO=clip.mp4"], "train": ["RECIPE=recipes/experiments/no_transv.yaml"]}
    script = make(target, *extra.get(target, []))
    for name in re.findall(r"recipes/[\w/]+\.yaml", script):
        assert (ROOT / name).is_file(), f"{target} names {name}"


def test_a_fresh_stage_2_makes_all_that_it_needs_in_order(tmp_path: Path) -> None:
    script = make("train-stage2", f"OUT={tmp_path}", "ARGS=optim.lr=1e-4")
    steps = re.findall(r"(shards world|train \S+/(stage\d)_\w+\.yaml|eval \S+)", script)
    order = [stage or text.split()[0] for text, stage in steps]
    assert order == ["shards", "stage0", "stage1", "stage2", "eval"]
    assert script.count("optim.lr=1e-4") == 2, "overrides go to the stage that is named, not to those before it"


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "data/world").mkdir(parents=True)
    (tmp_path / "data/world/.complete").touch()
    for stage in ("stage0_tower", "stage1_align"):
        export = tmp_path / "runs/tiny" / stage / "export"
        export.mkdir(parents=True)
        (export / "lineage.json").touch()
    script = make("train-stage2", f"OUT={tmp_path}")
    assert re.findall(r"stage\d", script) == ["stage2", "stage2"]
    assert "shards world" not in script


def test_the_published_size_makes_nothing_by_itself(tmp_path: Path) -> None:
    script = make("train-stage2", "SIZE=nano9b", f"OUT={tmp_path}")
    assert re.findall(r"train \S*(recipes/nano9b/\S+)", script) == ["recipes/nano9b/stage2_instruct.yaml"]
    assert "shards world" not in script


def test_several_processes_run_under_torchrun() -> None:
    script = make("train-stage2", "NPROC=8", "NNODES=2", "HEAD=node0:29400", "SIZE=nano9b")
    line = next(line for line in script.splitlines() if "torchrun" in line)
    assert "--nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29400" in line
    assert "torchrun" not in make("train-stage2", "SIZE=nano9b")
    assert "--standalone" in make("train-stage2", "NPROC=2", "SIZE=nano9b")


def test_own_data_become_one_more_source() -> None:
    assert "shards write clips.jsonl" in make("shards", "DATA=clips.jsonl")
    assert f"data.sources.mine.shards={ROOT}/data/mine" in make("train-stage2", "DATA=data/mine", "SIZE=nano9b")


@pytest.mark.parametrize(
    "page", ["README.md", "recipes/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_commands_in_documents_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    commands = re.findall(r"^\s*(?:\$ )?make ([a-z][a-z0-9-]*)|`make ([a-z][a-z0-9-]*)", text, re.MULTILINE)
    assert {a or b for a, b in commands} - set(targets()) == set()
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:^|`)\s*timeviper ([a-z]+)", text, re.MULTILINE)) - set(verbs) == set()
    for name in re.findall(r"recipes/\w+/\w+\.yaml", text):
        assert (ROOT / name).is_file(), f"{page} names {name}"


def test_ci_runs_tests_checks_and_smoke() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert all(f"make {target}" in script.read_text() for target in ("test", "check", "smoke"))


def reader(folder: Path, *names: str) -> Path:
    """A clone whose `timeviper` prints its arguments, one a line."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    program = folder / ".venv/bin/timeviper"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf '<%s>\\n' \"$@\"\n")
    program.chmod(0o755)
    for name in names:
        (folder / ".venv" / name).touch()
    return folder


@pytest.mark.parametrize(
    "question",
    ['the "red" one costs $5', "it's `x` $(HOME) $$ \\n", "Describe the video.", "-1 or 2?", "was läuft % da; # & *"],
)
def test_a_question_arrives_as_it_was_typed(tmp_path: Path, question: str) -> None:
    clone = reader(tmp_path, ".ready")
    command = ["make", "-s", "ask", "VIDEO=my clip.mp4", f"Q={question}", "ARGS=eval.batch=2 --json"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    words = [line[1:-1] for line in done.stdout.splitlines()]
    found = typer.main.get_command(app).commands["ask"].make_context("ask", words[1:]).params  # type: ignore[attr-defined]
    assert (found["question"], found["video"], found["overrides"]) == (question, Path("my clip.mp4"), ["eval.batch=2"])
    assert found["json"]


@pytest.mark.parametrize(
    ("torch", "says", "index"),
    [("cpu", "1.4 GB on disk", True), ("cuda", "9 GB on disk", False), ("usual", "1.4 GB", False)],
)
def test_setup_says_what_it_takes_and_whence(tmp_path: Path, torch: str, says: str, index: bool) -> None:
    clone = reader(tmp_path)

    def script(*goals: str) -> str:
        done = subprocess.run(["make", "-n", *goals, f"TORCH={torch}"], cwd=clone, capture_output=True, text=True)
        return done.stdout

    assert says in script("setup")
    assert ("--index-url https://download.pytorch.org/whl/cpu torch" in script("setup")) == index
    assert "--editable ." in script("setup")
    assert "[dev]" not in script("setup")
    assert "--editable '.[dev]'" in script("test")
    done = subprocess.run(["make", "setup", "TORCH=rocm"], cwd=clone, capture_output=True, text=True)
    assert "error: TORCH=rocm: it is cpu or cuda" in done.stdout
    assert done.returncode == 2
