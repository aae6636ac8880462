"""Every file of the zoo is read as a player shows it: its frames, their times, its length."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from media_makers import Animal
from media_zoo import ZOO
from video_helpers import numbers

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.fix import fix_shards
from timeviper.datamodules.checks.shards import CheckConfig, check_shards
from timeviper.datamodules.frames.container import Container
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import resized
from timeviper.datamodules.frames.scan import scan
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.timeline import read_timeline
from timeviper.datamodules.frames.video import Frames, lead_in, probe_video, read_video, sample_times
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import media_type

TICK = 1e-3 + 1e-6  # seconds; Matroska and FLV count whole milliseconds
PADDING = 0.07  # of sound: encoders begin before it and fill their last frame


def taking(count: int) -> FramesConfig:
    return FramesConfig(fps=1000, max_frames=count)


def check_frames(animal: Animal, read: Frames, wanted: FramesConfig) -> None:
    """They are those that a player shows at the sampled times, and are told their own."""
    assert (read.missing, read.count) == (0, len(animal.numbers))
    assert read.duration == pytest.approx(animal.duration, abs=PADDING)
    at = animal.times[0] + sample_times(read.duration, wanted, read.count)
    # Rounded stamps: a time within a millisecond of two frames may mean either.
    allowed = list(zip(animal.shown_at(at - TICK), animal.shown_at(at), animal.shown_at(at + TICK)))
    found = numbers(read)
    assert all(number in near for number, near in zip(found, allowed, strict=True)), f"{found}, not {allowed}"
    if len(set(animal.numbers)) == len(animal.numbers):
        place = dict(zip(animal.numbers, animal.times))
        apart = PADDING if animal.notes & {"start", "sound"} else TICK
        np.testing.assert_allclose(read.times, [place[number] for number in found], atol=apart)


@pytest.mark.parametrize("name", ZOO)
def test_a_player_would_show_it(media_zoo: dict[str, Animal], name: str):
    animal = media_zoo[name]
    for count in (1, 3, 7, 1000):
        read = read_video(animal.path, 64, taking(count))
        check_frames(animal, read, taking(count))
        np.testing.assert_array_equal(FrameStream(animal.path, 64, taking(count)).times, read.times)  # foretold
    info = probe_video(animal.path)
    assert (info.frames, info.duration) == (len(animal.numbers), pytest.approx(animal.duration, abs=PADDING))


def test_no_kind_of_file_leaves_anything_of_a_decoder_to_the_next_collection(media_zoo: dict[str, Animal]):
    """A frame of 4K is 12 MB, and a file that is open keeps its decoder's."""
    kinds = (av.VideoFrame, av.Packet, InputContainer, SideDataContainer)

    def alive() -> int:
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        for name, animal in media_zoo.items():
            read_video(animal.path, 64, taking(7))
            FrameStream(animal.path, 64, taking(7)).recount()
            assert alive() == before, name
    finally:
        gc.enable()


def decoded(animal: Animal) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and times of all frames by plain sequential decoding of what FFmpeg calls the best stream."""
    pixels, times = [], []
    with av.open(str(animal.path)) as file:
        for packet in file.demux(file.streams.best("video")):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in cast(list[av.VideoFrame], frames):
                if "colours" in animal.notes:
                    frame.colorspace = {10: 9, 14: 9}.get(int(frame.colorspace), 1)
                pixels.append(resized(frame, 64))
                times.append(frame.time if frame.time is not None else np.nan)
    return np.stack(pixels), np.array(times)


@pytest.mark.parametrize("name", ZOO)
def test_pixels_are_those_of_sequential_decoding(media_zoo: dict[str, Animal], name: str):
    animal = media_zoo[name]
    pixels, times = decoded(animal)
    assert len(pixels) == len(animal.numbers)
    if animal.honest:
        np.testing.assert_allclose(times - times[0], np.array(animal.times) - animal.times[0], atol=TICK)
    shown = np.array(animal.times) - animal.times[0] - slack(animal)
    lead = next(iter(every(animal.path)))
    for count in (2, 5, 1000):
        read = read_video(animal.path, 64, taking(count))
        at = np.searchsorted(shown, read.times - lead, side="right") - 1
        np.testing.assert_array_equal(read.pixels, pixels[at])


def slack(animal: Animal) -> float:
    """Seconds by which the time of a frame may be off, and mean no other."""
    steps = np.diff(animal.times)
    return 0.4 * float(steps[steps > 0].min(initial=0.1))


@pytest.mark.parametrize("name", ZOO)
def test_numbered_packets_read_the_same(media_zoo: dict[str, Animal], name: str):
    """The way in which joined recordings are read, on all files: decoders hand numbers on as they do time stamps."""
    animal = media_zoo[name]
    with Container(animal.path) as file:
        found = scan(file)
    with Container(animal.path) as file:
        timeline = read_timeline(file)
        if timeline.shown is not None:
            pytest.skip("it is read so, or frames are counted, anyway")
        found.hide_before(timeline.start)
        shown = sorted(s for n in found.visible if (s := found.stamps[n]) is not None)
        ranked = replace(timeline, shown=shown, ranks=found.ranks())
        targets = [shown[len(shown) * i // 5] for i in range(5)]
        direct = [(frame.pts, resized(frame, 64)) for frame, _, _ in FrameReader(file, timeline).read(targets)]
    with Container(animal.path) as file:
        by_number = [(at, resized(frame, 64)) for frame, at, _ in FrameReader(file, ranked).read(targets)]
    assert [at for at, _ in direct] == [at for at, _ in by_number]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(direct, by_number))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="FFmpeg's own program is not on the PATH")
@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_ffmpeg_lists_the_same_frames(media_zoo: dict[str, Animal], name: str):
    """Its program closes the gaps of jumping clocks as players do."""
    animal = media_zoo[name]
    if "bare" in name:
        pytest.skip("it makes up the time stamps of bare streams")
    command = ["ffmpeg", "-v", "quiet", "-i", str(animal.path), "-an", "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-enc_time_base", "-1", "-f", "framecrc", "-"], capture_output=True, text=True)
    base = Fraction(re.findall(r"#tb 0: (\S+)", done.stdout)[0])
    stamps = [int(line.split(",")[2]) for line in done.stdout.splitlines() if not line.startswith("#")]
    times = np.array([float(base * stamp) for stamp in stamps])
    assert len(times) == len(animal.numbers)
    np.testing.assert_allclose(times - times[0], np.array(animal.times) - animal.times[0], atol=0.002)


def ending_of(name: str) -> str:
    """Of the member in a shard: one that is read, whatever the file is."""
    own = name.partition(".")[2]
    return own if media_type(own) else "mp4"


@pytest.fixture(scope="module")
def shards(media_zoo: dict[str, Animal], tmp_path_factory: pytest.TempPathFactory) -> Path:
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "bars"}]
    samples = [
        {"__key__": name.replace(".", "-"), ending_of(name): animal.path, "json": {"messages": talk}}
        for name, animal in media_zoo.items()
    ]
    folder = tmp_path_factory.mktemp("shards")
    write_shards(samples, folder)
    return folder


ACCEPTED = CheckConfig(taking(7), 64, accept=frozenset({"duplicate", "near-duplicate"}))


def test_check_and_fix_harm_nothing(media_zoo: dict[str, Animal], shards: Path, tmp_path: Path):
    """No problem in any, no other note than what is so, and mended copies that show the same at the same times."""
    report = check_shards(shards, ACCEPTED)
    assert [(p.key, p.kind, p.detail) for p in report.problems] == []
    said: dict[str, set[str]] = {}
    for note in report.notes:
        if note.kind not in ("keyframes", *ACCEPTED.accept):
            said.setdefault(note.key, set()).add(note.kind)
    assert said == {name.replace(".", "-"): {*a.notes} for name, a in media_zoo.items() if a.notes}
    assert fix_shards(shards, tmp_path / "out", report, ACCEPTED) == []
    mended = {}
    for tar in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if not member.name.endswith("json"):
                    (tmp_path / member.name).write_bytes(cast(IO[bytes], file.extractfile(member)).read())
                    mended[member.name.partition(".")[0]] = tmp_path / member.name
    for name, animal in media_zoo.items():
        before, after = every(animal.path), every(mended[name.replace(".", "-")])
        assert len({*before}) <= len(after) <= len({*before}) + ("start" in animal.notes), name
        times = np.array([*after])
        shown = [after[times[np.searchsorted(times, at + 0.4 * slack(animal), side="right") - 1]] for at in before]
        assert shown == [*before.values()], name
        assert ending(mended[name.replace(".", "-")]) == pytest.approx(ending(animal.path), abs=PADDING), name


def every(path: Path) -> dict[float, int]:
    """Second at which a player shows it -> number, of all frames; of several at one time the last, which is seen."""
    with Container(path) as file:
        timeline = read_timeline(file)
        lead = lead_in(file, timeline.start)
        found = [(at, resized(frame, 64)) for frame, at in FrameReader(file, timeline).every()]
        times = np.array([lead + (at - timeline.start) * file.tick for at, _ in found])
    frames = Frames(np.stack([pixels for _, pixels in found]), times, 0.0, 0, 0.0)
    return dict(zip(times.tolist(), numbers(frames)))


def ending(path: Path) -> float:
    """Seconds on a player's clock at which it ends."""
    with Container(path) as file:
        timeline = read_timeline(file)
        return lead_in(file, timeline.start) + (timeline.end - timeline.start) * file.tick
