"""Shards on a web server and in a bucket: the same stream, bit for bit, for hardly more bytes than it needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import av
import numpy as np
import pytest
import torch
from range_server import RangeServer, serving
from tree import ROOT
from typer.testing import CliRunner

from timeviper.cli.main import app
from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, load_index, load_sources, pack_format
from timeviper.datamodules.fetch import fetch
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.mixture import Source, Unit
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote import patience, storage
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.listing import expand
from timeviper.datamodules.remote.member_file import LocalMember, MemberFile, SampleFiles, open_member
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES
from timeviper.datamodules.shards.column_file import FILE, write_columns
from timeviper.datamodules.shards.column_join import columns_of
from timeviper.datamodules.shards.index import index_path, index_shards, read_index
from timeviper.datamodules.shards.index_file import ShardIndex, encode
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.world.render import encode_image
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer
from timeviper.training.inputs import missing

TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "noise"}]
CLIPS, LONG = FramesConfig(fps=2.0, max_frames=16), FramesConfig(fps=1.0, max_frames=6)


def noise(path: Path, seconds: float, size: int, spacing: int, seed: int = 0) -> Path:
    """H.264 at 8 frames/s with a keyframe every `spacing` frames, of noise: blocks fill quickly."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=8, options={"g": str(spacing), "preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for _ in range(int(seconds * 8)):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a few blocks and pictures of less than one, in five shards; long videos in one more folder."""
    place = tmp_path_factory.mktemp("remote")
    samples = []
    for i in range(6):
        samples.append(
            {"__key__": f"clip{i}", "mp4": noise(place / f"{i}.mp4", 4, 96, 8, i), "json": {"messages": TALK}}
        )
        picture = encode_image(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8), "png")
        samples.append({"__key__": f"picture{i}", "png": picture, "json": {"messages": TALK}})
    write_shards(samples, place / "data", samples_per_shard=3)
    long = noise(place / "long.mp4", 90, 64, 24)
    write_shards([{"__key__": "long", "mp4": long, "json": {"messages": TALK}}], place / "data" / "long")
    index_shards(place / "data")
    return place / "data"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.05)
    with serving(folder) as server:
        yield server


def recipe_of(shards: str) -> Recipe:
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml")
    recipe.data.sources, recipe.data.val = {"x": SourceConfig(shards=shards)}, {}
    recipe.data.tokens_per_pack, recipe.data.packs_per_step, recipe.data.frames = 400, 2, CLIPS
    return recipe


def stream(shards: str, cache: BlockCache, steps: int = 2) -> list[StepBatch]:
    recipe, tokenizer = recipe_of(shards), Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(recipe), cache=cache)
    return [reader[step.share(0, 1)] for step in islice(build_plan(recipe, tokenizer).steps(), steps)]


def assert_same(found: list[StepBatch], wanted: list[StepBatch]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a.step, a.used, a.skipped, a.truncated, a.replaced) == (b.step, b.used, [], [], {})
        for p, q in zip(a.packs, b.packs, strict=True):
            assert p.keys == q.keys
            assert all(
                torch.equal(getattr(p, n), getattr(q, n)) for n in ("ids", "labels", "kind", "frames", "frame_times")
            )


@pytest.fixture(scope="module")
def local(folder: Path) -> list[StepBatch]:
    """What is read from the disk."""
    return stream(str(folder), BlockCache("", 0))


def units(shards: str) -> list[Unit]:
    source = Source("x", load_index(shards))
    return [source[i] for i in range(len(source))]


# --- every byte is verified -----------------------------------------------------------------------


def test_no_flipped_bit_is_handed_out(folder: Path, tmp_path: Path) -> None:
    """Wherever it is in a video, FFmpeg's own error never hides what is wrong, and the next video is not blamed."""
    shard = Path(shutil.copytree(folder, tmp_path / "copy")) / "shard-00000.tar"
    unit = units(str(shard))[0]
    offset, size, _ = unit.record.members["mp4"]
    assert size > 3 * BLOCK_BYTES
    whole = fetch(unit, CLIPS, 32, {}).media[0].pixels
    for at in [*range(0, size, size // 12), size - 1]:
        with shard.open("r+b") as file:
            file.seek(offset + at)
            byte = file.read(1)[0]
            file.seek(offset + at)
            file.write(bytes([byte ^ 4]))
            file.flush()
            first = at // BLOCK_BYTES * BLOCK_BYTES
            where = rf"{shard}, sample 'clip0': mp4 is damaged: its bytes {first} to {min(first + BLOCK_BYTES, size)} "
            with pytest.raises(ShardError, match=where):
                fetch(unit, CLIPS, 32, {})
            file.seek(offset + at)
            file.write(bytes([byte]))
        assert np.array_equal(fetch(unit, CLIPS, 32, {}).media[0].pixels, whole)


def test_a_shard_that_was_cut_is_named(folder: Path, tmp_path: Path) -> None:
    shard = Path(shutil.copytree(folder, tmp_path / "copy")) / "shard-00000.tar"
    unit = units(str(shard))[0]
    with shard.open("r+b") as file:
        file.truncate(unit.record.members["mp4"].offset + BLOCK_BYTES + 100)
    with pytest.raises(
        ShardError, match=f"mp4 is damaged: its bytes {3 * BLOCK_BYTES} .* are cut off after 0; copy the shard again"
    ):
        fetch(unit, CLIPS, 32, {})


def spoil(file: IO[bytes]) -> None:
    assert isinstance(file, MemberFile)
    file.error = file.damaged(1, BLOCK_BYTES)


def test_an_error_that_ffmpeg_swallows_is_raised_in_the_end(folder: Path) -> None:
    unit = units(str(folder))[0]
    with (
        pytest.raises(ShardError, match="mp4 is damaged"),
        open_member(unit.shard, unit.record, "mp4") as file,
    ):
        spoil(file)


def test_old_and_changed_indexes_are_refused(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = index_path(place / "shard-00000.tar")
    whole = index.read_text()
    (place / FILE).unlink()
    index.write_text('{"version":1,"shard":"shard-00000.tar","bytes":1,"samples":[]}')
    with pytest.raises(ValueError, match=r"has version 1, this program reads 3; .*run `timeviper shards index"):
        load_index(place)
    for changed in (whole.replace('"duration":4.0', '"duration":5.0'), whole + " "):
        index.write_text(changed)
        with pytest.raises(ValueError, match="is damaged or was changed"):
            load_index(place)
    assert index_shards(place) == [index, place / FILE]
    assert index.read_text() == whole


def test_a_merged_index_stands_in_for_missing_ones(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = load_index(place)
    for tar in place.glob("*.tar"):
        index_path(tar).unlink()
    assert load_index(place) == before
    with (place / "shard-00001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"shard-00001\.tar has no index; run `timeviper shards index"):
        load_index(place)
    with pytest.raises(ValueError, match=r"index.safetensors is of a shard of \d+ bytes, but shard-00001.tar has"):
        read_index(place / "shard-00001.tar")
    (place / FILE).unlink()
    with pytest.raises(ValueError, match="has no index; run `timeviper shards index"):
        load_index(place)


# --- a web server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", "/shard-{00000..00003}.tar"])
def test_the_stream_from_a_server_is_the_local_one(
    local: list[StepBatch], server: RangeServer, tmp_path: Path, form: str
) -> None:
    cache = BlockCache(tmp_path, 10**8)
    assert_same(stream(server.url + form, cache), local)
    assert {path for path, _ in server.requests if not path.endswith(".tar")} == {"/index.safetensors"}
    server.forget()
    stream(server.url + form, cache)
    assert server.tar_bytes() == 0  # all of it was kept


def test_a_folder_has_several_names(folder: Path, server: RangeServer) -> None:
    wanted = load_index(server.url)
    assert [shard.location for shard in wanted] == [f"{server.url}/shard-{i:05d}.tar" for i in range(4)]
    assert [shard.samples for shard in wanted] == [shard.samples for shard in load_index(folder)]
    for form in ("/", "/index.safetensors", "/shard-0000{0,1,2,3}.tar"):
        assert load_index(server.url + form) == wanted
    assert load_index(f"{server.url}/shard-00002.tar") == wanted[2:3]


def test_a_folder_behind_a_signature(local: list[StepBatch], server: RangeServer, tmp_path: Path) -> None:
    """Each name of it takes the query to every file, and none of it into the keys of samples, which logs have."""
    server.query = "sv=2026&sig=a%2Fb.tar"
    signed, cache = f"?{server.query}", BlockCache(tmp_path, 10**8)
    assert_same(stream(f"{server.url}/{signed}", cache), local)
    for name in ("index.safetensors", "shard-{00000..00003}.tar", "shard-00000.tar"):
        shards = load_index(f"{server.url}/{name}{signed}")
        assert [shard.name for shard in shards] == [f"shard-{i:05d}.tar" for i in range(len(shards))]
        assert all(shard.location.endswith(signed) for shard in shards)
    assert units(f"{server.url}/shard-00000.tar{signed}")[0].key.startswith("x/shard-00000.tar/clip0")


def test_a_signature_of_one_file_is_told_from_that_of_a_folder(server: RangeServer) -> None:
    server.query = "sig=abc"
    with pytest.raises(ValueError, match=r"idx.json\?\.\.\. may not be read .*must be of the whole folder") as error:
        load_index(f"{server.url}/shard-00000.tar?sig=other")
    assert "sig=" not in str(error.value)
    server.query = ""
    with pytest.raises(ValueError, match=r"nowhere/index.safetensors does not exist"):
        load_index(f"{server.url}/nowhere")


@pytest.mark.slow
def test_loader_processes_read_from_a_server(local: list[StepBatch], server: RangeServer, tmp_path: Path) -> None:
    """Two of them, started anew (spawn), that share a cache, while one request in ten fails."""
    server.fail_every = 10
    recipe, tokenizer = recipe_of(server.url), Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(recipe), cache=BlockCache(tmp_path, 10**8))
    loader = Loader(reader, lambda: islice(build_plan(recipe, tokenizer).steps(), 2), workers=2)
    assert_same(list(loader), local)
    assert server.failures


def test_one_request_in_ten_that_fails_changes_nothing(
    local: list[StepBatch], server: RangeServer, tmp_path: Path
) -> None:
    """Without a cache, so that there are many."""
    server.fail_every = 10
    found = stream(server.url, BlockCache(tmp_path, 0))
    assert server.failures >= 3
    assert_same(found, local)


def test_a_small_cache_stays_small(local: list[StepBatch], server: RangeServer, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * BLOCK_BYTES)
    assert_same(stream(server.url, cache), local)
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= cache.max_bytes


@pytest.mark.parametrize(
    ("shards", "frames"),
    [("", CLIPS), ("long", LONG), ("long", replace(LONG, max_frames=20)), ("long", replace(LONG, max_frames=60))],
)
def test_hardly_more_is_sent_than_is_needed(
    folder: Path,
    server: RangeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: str,
    frames: FramesConfig,
) -> None:
    """At most 1.2 times the blocks that reading the same frames from a disk touches."""
    touched: dict[tuple[str, str, int], int] = {}
    load = LocalMember.load

    def counted(file: LocalMember, number: int) -> bytes:
        touched[file.key, file.field, number] = file.blocks[number].size
        return load(file, number)

    monkeypatch.setattr(LocalMember, "load", counted)
    wanted = [fetch(unit, frames, 32, {}).media[0].pixels for unit in units(str(folder / shards))]
    cache = BlockCache(tmp_path, 10**8)
    found = [fetch(unit, frames, 32, {}, cache).media[0].pixels for unit in units(f"{server.url}/{shards}")]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    total = sum(unit.record.members["mp4"].size for unit in units(str(folder / shards)) if "mp4" in unit.record.members)
    needed, sent = sum(touched.values()), server.tar_bytes()
    print(f"sent {sent:,}, needed {needed:,} ({sent / needed:.3f}) of {total:,} bytes, {len(server.requests)} requests")
    assert sent <= 1.2 * needed
    if frames == LONG:
        assert needed < 0.5 * total


def test_a_block_that_arrives_damaged_is_asked_for_again(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    server.folder = tmp_path / "copy"
    unit = units(server.url)[0]
    cache = BlockCache(tmp_path / "cache", 10**8)
    assert SampleFiles(unit.shard, unit.record, cache).read("json")
    server.forget()
    shard = tmp_path / "copy" / "shard-00000.tar"
    offset = unit.record.members["mp4"].offset
    with shard.open("r+b") as file:
        file.seek(offset + 5)
        file.write(b"\xff\xff")
    with pytest.raises(ShardError, match=rf"sample 'clip0': mp4 is damaged: its bytes 0 to {BLOCK_BYTES} "):
        fetch(unit, CLIPS, 32, {}, cache)
    assert len(server.requests) == 2
    with open_member(unit.shard, unit.record, "mp4") as file:
        assert isinstance(file, MemberFile)
        assert not cache.get(unit.shard, [file.blocks[0]])


def test_a_store_that_is_away_costs_no_sample(
    local: list[StepBatch], server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter than its patience nothing is seen of it; longer, the step is blank and no sample is charged."""
    recipe, tokenizer = recipe_of(server.url), Tokenizer.load("")
    plan = next(iter(build_plan(recipe, tokenizer).steps()))
    reader = PackReader(tokenizer, pack_format(recipe), cache=BlockCache(tmp_path, 0, patience=60.0))
    server.fail_next = 30
    assert_same([reader[plan.share(0, 1)]], local[:1])
    assert server.failures == 30
    server.away_for(60.0)
    reader = PackReader(tokenizer, pack_format(recipe), cache=BlockCache(tmp_path, 0, patience=0.3))
    batch = reader[plan]
    assert (batch.used, batch.replaced, batch.skipped, batch.truncated) == ({}, {}, [], [])
    assert [pack.keys for pack in batch.packs] == [[] for _ in plan.packs]
    assert re.match(
        rf"sample '(clip|picture)\d', \w+: {server.url}/shard-0000\d.tar could not be read for ", batch.away
    )
    assert "is the store up and reachable? (data.patience=0.3 is how long" in batch.away
    with pytest.raises(ValueError, match=r"data source 'x': no shards: .*index.safetensors could not be read for \d s"):
        load_sources(recipe.data.sources, patience=0.3)
    server.back_at, server.fail_next = 0.0, 5
    assert len(load_index(server.url, patience=60.0)) == 4


@pytest.mark.parametrize(("status", "reason"), [(401, "other credentials"), (403, "That is no outage")])
def test_refused_credentials_are_said_at_once_and_charged_to_no_sample(
    server: RangeServer, tmp_path: Path, status: int, reason: str
) -> None:
    recipe, tokenizer = recipe_of(server.url), Tokenizer.load("")
    plan = next(iter(build_plan(recipe, tokenizer).steps()))
    server.status = status
    batch = PackReader(tokenizer, pack_format(recipe), cache=BlockCache(tmp_path, 0))[plan]
    assert (batch.used, batch.skipped) == ({}, [])
    assert reason in batch.away


@pytest.mark.parametrize("missing", ["404", "short"])
def test_a_shard_that_is_gone_or_cut_is_charged_once_a_sample(
    folder: Path, server: RangeServer, tmp_path: Path, missing: str
) -> None:
    """Its spares, which fail as well, are counted when their own turn comes."""
    recipe, tokenizer = recipe_of(server.url), Tokenizer.load("")
    plan = next(iter(build_plan(recipe, tokenizer).steps()))
    server.folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    for tar in server.folder.glob("*.tar"):
        if missing == "404":
            tar.unlink()
        else:
            tar.write_bytes(tar.read_bytes()[:600])
    batch = PackReader(tokenizer, pack_format(recipe), cache=BlockCache(tmp_path / "cache", 0))[plan]
    items = [item.unit.key for pack in plan.packs for item in pack]
    assert (batch.away, batch.used) == ("", {})
    assert sorted(lost.key for lost in batch.skipped) == sorted(items)
    told = "does not exist (404)" if missing == "404" else "its index is of another file"
    assert all(told in lost.reason for lost in batch.skipped)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("/none", r"/none/index.safetensors does not exist, .*run `timeviper shards index FOLDER`"),
        ("/*.tar", "a web server cannot list files"),
        ("/shard-{0..3.tar", "the braces in .* do not match"),
        ("/shard-{3}.tar", "is no range"),
        ("/shard-{3..1}.tar", "runs backwards"),
        ("/other-{0..9}.tar", "no index of .*/other-0.tar, .* and 7 more is there"),
        ("/shard-00000.tar/index.safetensors", r"index.safetensors does not exist \(404\)"),
    ],
)
def test_wrong_places_are_told_at_the_start(server: RangeServer, where: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_index(server.url + where)


def test_a_slow_index_is_announced_and_a_damaged_one_refused(
    folder: Path,
    server: RangeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(storage, "NOTICE", 0.05)
    server.delay = 0.3
    assert len(load_index(server.url)) == 4
    assert capsys.readouterr().err == f"reading the index of {server.url} ...\n"
    server.folder, server.delay = tmp_path, 0.0
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes().replace(b"clip3", b"clip4"))
    with pytest.raises(ValueError, match=r"index.safetensors is damaged .*\(key: wrong.*upload the indexes again"):
        load_index(server.url, tmp_path / "cache")
    shards = [ShardIndex("../etc/x.tar", s.bytes, s.samples) for s in load_index(folder)]
    write_columns(tmp_path / FILE, [columns_of(shards)])
    with pytest.raises(ValueError, match=r"shards that do not lie beside it; .*upload the indexes again"):
        load_index(server.url, tmp_path / "cache")
    (tmp_path / FILE).unlink()
    whole = encode(load_index(folder))  # what former versions wrote
    (tmp_path / "index.json").write_bytes(whole)
    assert [s.samples for s in load_index(server.url)] == [s.samples for s in load_index(folder)]
    for before, after in ((b"clip3", b"clip4"), (b"shard-00001.tar", b"../etc/x.tar")):
        (tmp_path / "index.json").write_bytes(whole.replace(before, after))
        with pytest.raises(ValueError, match=r"index.json is damaged .*upload the indexes again"):
            load_index(server.url)


@pytest.mark.parametrize("verb", ["check", "index"])
def test_what_reads_every_byte_wants_a_disk(verb: str) -> None:
    result = CliRunner().invoke(app, ["shards", verb, "https://host/mine"])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("https://host/mine is not on this disk")
    assert "before they are uploaded" in str(result.exception)


def test_braces() -> None:
    assert list(expand("a{08..11}.tar")) == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert list(expand("{x,y}/{1..2}")) == ["x/1", "x/2", "y/1", "y/2"]
    assert list(expand("https://host/data")) == ["https://host/data"]


def test_a_recipe_says_which_stores_cannot_be_used() -> None:
    recipe = recipe_of("s4://bucket/data")
    problems = {p.key: p.message for p in missing(recipe)}
    assert "s4:// is no store that fsspec knows" in problems["data.sources.x.shards"]


# --- a bucket -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """An S3 server with the same files."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="videos")
        for path in folder.glob("*.*"):
            client.upload_file(str(path), "videos", f"data/{path.name}")
            if path.name != FILE:
                client.upload_file(str(path), "videos", f"single/{path.name}")
        yield "s3://videos"
    server.stop()


@pytest.mark.parametrize("form", ["data", "data/*.tar", "single", "single/shard-{00000..00003}.tar"])
def test_the_stream_from_a_bucket_is_the_local_one(
    local: list[StepBatch], bucket: str, tmp_path: Path, form: str
) -> None:
    cache = BlockCache(tmp_path, 10**8)
    assert_same(stream(f"{bucket}/{form}", cache), local)


def test_a_bucket_tells_when_an_index_is_old(folder: Path, bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    for path in folder.glob("*.*"):
        client.upload_file(str(path), "videos", f"stale/{path.name}")
    client.put_object(Bucket="videos", Key="stale/shard-00001.tar", Body=b"x" * 1000)
    with pytest.raises(ValueError, match=r"stale/shard-00001.tar has 1000 bytes, but its index is of"):
        load_index(f"{bucket}/stale")
    client.upload_file(str(folder / "shard-00001.tar"), "videos", "stale/shard-00001.tar")
    client.put_object(Bucket="videos", Key="stale/shard-00009.tar", Body=b"x" * 1000)
    with pytest.raises(ValueError, match=r"no index of .*stale/shard-00009.tar is there"):
        load_index(f"{bucket}/stale")
    client.delete_object(Bucket="videos", Key="stale/shard-00009.tar")
    client.delete_object(Bucket="videos", Key="stale/shard-00002.tar")
    with pytest.raises(ValueError, match=r"stale/shard-00002.tar is in its folder's index but not there; upload"):
        load_index(f"{bucket}/stale")
    assert len(load_index(f"{bucket}/stale/*.tar")) == 3
    with pytest.raises(ValueError, match=r"s3://videos/none has no \.tar in it"):
        load_index(f"{bucket}/none")
    with pytest.raises(ValueError, match=r"no shards: .*nowhere"):
        load_index("s3://nowhere/data")
