"""The report of a run: curves from either log, samples with what is left of each frame, runs that lack things."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from export_helpers import random_run
from typer.testing import CliRunner

from timeviper.analysis.log_curves import read_curves, thinned
from timeviper.analysis.report import _which, chosen, show, thumbnail
from timeviper.analysis.subject import load_subject
from timeviper.cli.main import app


def log(folder: Path, start: int, text: str) -> None:
    (folder / f"from-step-{start}").mkdir(parents=True)
    (folder / f"from-step-{start}" / "metrics.csv").write_text(text)


def test_a_later_start_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    log(tmp_path, 0, "step,train/loss,val/loss\n10,3.0,\n20,2.0,\n20,,2.5\n30,9.0,\n")
    log(tmp_path, 20, "step,train/loss,lr/x\n30,1.5,0.1\n40,nan,0.2\n")
    assert read_curves(tmp_path) == {
        "lr/x": [(30, 0.1), (40, 0.2)],
        "train/loss": [(10, 3.0), (20, 2.0), (30, 1.5)],
        "val/loss": [(20, 2.5)],
    }


def test_event_files_are_read_where_there_is_no_csv(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in (1, 2):
            writer.add_scalar("train/loss", 1 / step, step)
            writer.add_scalar("epoch", 0, step)
    assert read_curves(tmp_path) == {"train/loss": [(1, 1.0), (2, 0.5)]}
    assert read_curves(tmp_path / "none") == {}


def test_long_curves_are_means_of_neighbours() -> None:
    assert thinned([(i, float(i)) for i in range(10)], 2) == [(4, 2.0), (9, 7.0)]
    assert thinned([(1, 1.0)], 2) == [(1, 1.0)]


def test_of_many_frames_those_that_survive_are_shown() -> None:
    assert _which({}, 5) == [0, 1, 2, 3, 4]
    left = [0] * 100
    left[70] = left[3] = 4
    assert {3, 70} <= set(_which({"early": [1] * 100, "late": left}, 100))
    assert _which({"late": [1] * 100}, 100)[:2] == [0, 4]
    assert len(_which({}, 100)) == 24


def test_thumbnails_are_small_and_keep_their_shape() -> None:
    assert thumbnail(torch.zeros(3, 384, 192, dtype=torch.uint8)).shape == (72, 36, 3)
    small = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert (thumbnail(small) == small.permute(1, 2, 0).numpy()).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    return random_run(tmp_path_factory.mktemp("report") / "run", val=world / "val/videos")


def test_survivors_are_those_of_the_model(run: Path) -> None:
    subject = load_subject(run)
    items = chosen(subject, 3)
    assert len({item.unit.spec.type for item in items}) == 3  # as many types as there are
    for one in show(subject, items):
        kept = {name: sum(left) for name, left in one.survivors.items()}
        vision = len(one.times) * one.tokens
        assert kept == {"early": vision // 2, "late": max(vision // 10, 1)}
        assert len(one.pixels) == len(one.frames) == len(one.times)
        assert one.loss > 0
        assert one.question
        assert not {"user", "assistant", "0.5s"} & {*one.question.split()}
        assert one.truth is None or one.type == "when"


def test_a_sample_is_found_by_the_end_of_its_key_or_the_nearest_are_named(run: Path) -> None:
    subject = load_subject(run)
    key = subject.items(1)[0].unit.key
    assert subject.item(key).unit.key == subject.item(key.rpartition("/")[2]).unit.key == key
    with pytest.raises(ValueError, match=r"names [0-9]+ held-out samples .* the nearest of"):
        subject.item(key.partition("#")[0])
    with pytest.raises(ValueError, match=r"--sample nonsense is no held-out sample of .* the nearest of"):
        subject.item("nonsense")


def report(*words: str) -> str:
    """What `timeviper report` prints, in this process."""
    done = CliRunner().invoke(app, ["report", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.strip().splitlines()[-1]


def test_the_command_writes_one_page(run: Path, tmp_path: Path) -> None:
    log(tmp_path / "run/logs", 0, "step,train/loss,transv/gate/early\n10,3.0,0.1\n20,2.0,0.2\n")
    shutil.copytree(run / "export", tmp_path / "run/export")
    page = Path(report(str(tmp_path / "run"), "--samples", "2"))
    assert page == tmp_path / "run/report.html"
    text = page.read_text()
    for part in ("TransV gates", "kept by early", "Not evaluated yet", "Loss", "right answer"):
        assert part in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")

    shutil.rmtree(tmp_path / "run/export")  # while it trains
    assert "has no export yet" in Path(report(str(tmp_path / "run"))).read_text()
    shutil.rmtree(tmp_path / "run/logs")
    with pytest.raises(FileNotFoundError, match="is not an export"):
        report(str(tmp_path / "run"))


def test_a_run_without_stages_or_logs_says_so(tmp_path: Path, world: Path) -> None:
    run = random_run(
        tmp_path / "run", "model.transv.stages.early=null", "model.transv.stages.late=null", val=world / "val/videos"
    )
    text = Path(report(str(run), "--samples", "1")).read_text()
    assert "This run has no TransV stage: every token of every frame survives." in text
    assert "No curves:" in text
    assert "kept by" not in text
