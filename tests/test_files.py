"""What is written is whole or not there: an error in the middle leaves what was, and a name comes after the bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from timeviper.files import put, remove_folder, whole_file, whole_folder, write_whole


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text; folders that are empty, too."""
    paths = (p for p in folder.rglob("*") if p.is_file() or not any(p.iterdir()))
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else "" for p in paths}


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a.json", "old")

    def stopped() -> None:
        with whole_file(path) as partial:
            partial.write_text("ne")
            assert tree(tmp_path) == {"a.json": "old", partial.name: "ne"}
            assert partial.suffix == ".tmp"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert tree(tmp_path) == {"a.json": "old"}
    write_whole(path, "später")
    assert path.read_bytes() == "später".encode()
    write_whole(path, b"new")
    assert tree(tmp_path) == {"a.json": "new"}


def test_two_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as two:
        one.write_text("1")
        two.write_text("2")
    assert tree(tmp_path) == {"a": "1"}  # of the block that ended last


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "export"

    def fill(name: str, *, room: bool = True) -> None:
        with whole_folder(path) as partial:
            assert tree(partial) == {}
            (partial / "below").mkdir()
            (partial / "below" / name).write_text("some")
            if not room:
                raise OSError("disk full")

    fill("old")
    with pytest.raises(OSError, match="disk full"):
        fill("half", room=False)
    assert tree(tmp_path) == {"runs/export/below/old": "some"}
    (tmp_path / "runs" / "export.tmp" / "left").mkdir(parents=True)  # by a process that was killed
    fill("new")
    assert tree(tmp_path) == {"runs/export/below/new": "some"}
    remove_folder(path)
    assert tree(tmp_path) == {"runs": ""}


def test_all_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append(str(Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path)))
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"-> {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "below").mkdir()
        (partial / "below" / "file").touch()
    assert sorted(done[:3]) == ["folder.tmp", "folder.tmp/below", "folder.tmp/below/file"]
    assert done[3:] == ["-> folder", "."]
    done.clear()
    (tmp_path / "part").touch()
    put(tmp_path / "part", tmp_path / "file")
    assert done == ["part", "-> file", "."]
