"""A store that is away in the middle of a run: nothing is lost or charged, and a run that ends keeps its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import Job, Pictures, go_away_at, losses, weights, write_recipe
from range_server import serving

from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.pool import write_shards


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_an_outage_costs_time_and_a_long_one_the_rest_of_the_run_but_no_data(tmp_path: Path, world: int) -> None:
    """The store is away at step 2 for less than the run's patience, and from step 5 on for more: the run
    ends with the state after step 5 and a sentence, and the same command takes it to where it would have come."""
    shards, pictures = tmp_path / "shards", Pictures()
    samples = [
        {"__key__": f"{i:02d}", "json": {"messages": pictures.record(i)["messages"]}, "png": pictures.open(i, "png")}
        for i in range(40)
    ]
    write_shards(samples, shards, samples_per_shard=10)
    index_shards(shards)
    recipe, stop = write_recipe(tmp_path), tmp_path / "stop"
    with serving(shards) as server:

        def command(out: str) -> list[str]:
            sources = ["data.sources.pictures=null", f"data.sources.far.shards={server.url}"]
            rest = ["data.cache_gb=0", "data.patience=8", "data.max_skipped=0"]
            return ["train", str(recipe), f"out={tmp_path / out}", *sources, *rest]

        server.gone = stop
        job = Job(tmp_path, world, *command("out"), first=go_away_at, stop=str(stop), steps=(2, 5))
        job.until("waiting for http", seconds=300)
        stop.unlink()
        assert all(job.end(400)), job.said()
        said = job.said(0) + job.said(1)
        told = "is the store up and reachable? (data.patience=8 is how long it is waited for). The run continues from "
        assert f"{told}step=5 with: " in said, said
        assert "Traceback" not in said, said
        stop.unlink()
        for out in ("out", "undisturbed"):
            job = Job(tmp_path, world, *command(out))
            assert job.end(400) == [0] * world, job.said()
    assert "skipped: 0" in job.said()
    assert losses(tmp_path / "out") == losses(tmp_path / "undisturbed")
    one, other = weights(tmp_path / "out"), weights(tmp_path / "undisturbed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
