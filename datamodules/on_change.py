"""A run goes on, and its shards are not those that it has read so far: what has changed, and the two ways on.

Each checkpoint notes the shards that the plan reads, by name and by a digest of all that it knows of them. Where they
lie does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from timeviper.datamodules.mixture import Standing
from timeviper.datamodules.order import (
    Former,
    Listing,
    Place,
    Rows,
    ShardEntry,
    digest,
    epoch_windows,
    listing_name,
    numbered,
)
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.plan_files import FILE as STATE
from timeviper.datamodules.plan_files import read_state
from timeviper.datamodules.plan_state import PlanState, canonical
from timeviper.datamodules.source import Sizes, Source, Unit

FILE = "data.json"  # of a checkpoint
NAMED = 8  # shards of a kind that a message names

Way = Literal["refuse", "finish_epoch", "restart_order"]


@dataclass(frozen=True)
class DataRecord:
    """What a checkpoint notes of the data."""

    sources: dict[str, Listing]
    origin: PlanState | None = None
    """Where the data last changed (see `Plan`)."""
    formers: dict[str, Listing] = field(default_factory=dict)

    @staticmethod
    def of(plan: Plan) -> DataRecord:
        return DataRecord({name: s.listing for name, s in plan.sources.items()}, plan.origin, plan.formers)

    def encode(self) -> str:
        content = {
            "sources": self.sources,
            "origin": self.origin.encode("") if self.origin else "",
            "formers": self.formers,
        }
        return json.dumps(content | {"digest": digest(canonical(content))}) + "\n"

    @staticmethod
    def read(checkpoint: Path) -> DataRecord | None:
        """None for a checkpoint from before there were any. ValueError for one that is damaged."""
        file = checkpoint / FILE
        if not file.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_bytes())
            sound = content.pop("digest") == digest(canonical(content))
            origin = PlanState.decode(content["origin"], "") if content["origin"] else None
            sources, formers = (
                {name: tuple(ShardEntry(*entry) for entry in entries) for name, entries in content[part].items()}
                for part in ("sources", "formers")
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            sound, origin, sources, formers = False, None, {}, {}
            raise ValueError(_damaged(file, repr(error))) from error
        if not sound:
            raise ValueError(_damaged(file, "wrong digest"))
        return DataRecord(sources, origin, formers)


def _damaged(file: Path, reason: str) -> str:
    return (
        f"{file} is damaged ({reason}), so nothing tells whether the shards are those that the run has read; if you "
        "know that they are, delete it, else continue from an earlier checkpoint (edit `latest` beside it)"
    )


class Change(NamedTuple):
    """Of one source."""

    appended: list[str]
    replaced: list[str]
    gone: list[str]

    @staticmethod
    def between(before: Listing, now: Listing) -> Change | None:
        if before == now:
            return None
        old, new = (dict(zip(numbered(shard.name for shard in listing), listing)) for listing in (before, now))
        return Change(
            [key[0] for key in new if key not in old],
            [key[0] for key in new if key in old and new[key][1:] != old[key][1:]],
            [key[0] for key in old if key not in new],
        )

    def __str__(self) -> str:
        named = []
        for kind, names in zip(self._fields, self):
            if names:
                more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
                named.append(f"{len(names):,} {kind}: {', '.join(names[:NAMED])}{more}")
        return "; ".join(named) or "the same shards in another order"


def follow(plan: Plan, checkpoint: Path, step: int, way: Way) -> list[str]:
    """Let `plan`, made of today's shards, go on where it stood before `step` when a checkpoint was written.

    Returns what to tell of shards that have changed since. ValueError says which, where `way` is "refuse", or where
    what the run has read cannot be told any more.
    """
    record = DataRecord.read(checkpoint)
    if record is None:
        return []
    changes = {
        name: change
        for name, source in plan.sources.items()
        if (change := Change.between(record.sources.get(name, ()), source.listing))
    }
    if not changes:
        plan.go_on_from(record.origin, record.formers)
        return []
    told = [f"the shards of data source {name!r} have changed since: {change}" for name, change in changes.items()]
    if way == "refuse":
        raise ValueError(
            ". ".join(told) + ". Give the run its shards back (data.sources.<name>.shards=... where they lie "
            "elsewhere), or say how to go on: data.on_change=finish_epoch reads what the epoch under way has left of "
            "the shards of before, then all of today's, epoch after epoch; data.on_change=restart_order begins an "
            "epoch of today's shards now, so that what this epoch has read comes once more"
        )
    state = _state_of_then(plan, record, checkpoint, step)
    origin, formers, lost = _carried(plan, record, state, changes, way)
    plan.go_on_from(origin, formers)
    ways = {
        "finish_epoch": "data.on_change=finish_epoch: the epoch under way ends with the shards of before",
        "restart_order": "data.on_change=restart_order: an epoch of today's shards begins",
    }
    gone = f"; {lost:,} samples that it had left are gone with their shards" if lost else ""
    return [*told, f"{ways[way]}{gone}"]


def adopt(plan: Plan, run: Path) -> None:
    """Let `plan` know of changes of the data that its run has gone through, if today's shards are those of the run."""
    checkpoints = sorted(run.glob(f"checkpoints/step=*/{FILE}"), key=lambda file: file.stat().st_mtime_ns)
    for file in checkpoints[-1:]:
        record = DataRecord.read(file.parent)
        if record and record.sources == {name: source.listing for name, source in plan.sources.items()}:
            plan.go_on_from(record.origin, record.formers)


def _state_of_then(plan: Plan, record: DataRecord, checkpoint: Path, step: int) -> PlanState:
    """Where the plan stood with the shards of before: as noted, else as those tell that are all still there."""
    now = {name: Earlier(source, record.sources[name]) for name, source in plan.sources.items()}
    then = Plan(dict(now), plan.data, plan.phases, plan.cost, plan.seed)
    then.go_on_from(record.origin, record.formers)
    if state := read_state(checkpoint / STATE, then.identity(step)):
        return state
    if not all(source.complete for source in now.values()):
        raise ValueError(
            f"{checkpoint / STATE} is missing or of other settings, and shards of before are gone: what the run has "
            "read of them cannot be told. Give it those shards back once, or start a run of its own from this one "
            "(train.init_from=... out=runs/...)"
        )
    return then.state(step)


def _carried(
    plan: Plan, record: DataRecord, state: PlanState, changes: Mapping[str, Change], way: Way
) -> tuple[PlanState, dict[str, Listing], int]:
    """The state for today's shards, the former listings that it speaks of, and how many units are lost to it."""
    places, formers, rows, lost = dict(state.standing.places), {}, {}, 0
    for name, source in plan.sources.items():
        place = places.get(name, Place())
        if name in changes:
            before = record.sources[name]
            if way == "restart_order":
                places[name] = Place()
                continue
            rows[name] = Former(source, before)
            if not place.former:
                place = replace(place, former=listing_name(before))
                formers[place.former] = before
            places[name] = place
        if place.former and place.former not in formers:
            formers[place.former] = record.formers[place.former]
        if name in changes:
            lost += _left_and_gone(plan, source, Earlier(source, record.sources[name]), formers[place.former], place)
    waiting: list[tuple[str, int]] = []
    for name, row in state.waiting:
        if name in changes and name not in rows:
            continue  # comes in the new epoch
        now = int(rows[name].rows(np.array([row]))[0]) if name in rows else row
        lost += now < 0
        waiting += [(name, now)] if now >= 0 else []
    standing = Standing(places, state.standing.weights, state.standing.passes)
    return PlanState(state.step, standing, tuple(waiting)), formers, lost


def _left_and_gone(plan: Plan, source: Source, before: Earlier, listing: Listing, place: Place) -> int:
    """Units that an epoch has not come to, and that are no longer there, although they were `before`."""
    former, earlier = Former(source, listing), Former(before, listing)
    if former.complete:
        return 0
    windows = epoch_windows(
        source.name, former.counts, plan.seed, place.epoch, plan.data.shuffle_window, place.position
    )
    return sum(int(((former.rows(rows) < 0) & (earlier.rows(rows) >= 0)).sum()) for rows in windows)


class Earlier(Source):
    """A source as it was when its shards were those of a listing; what is gone cannot be asked for."""

    def __init__(self, source: Source, listing: Listing) -> None:
        self.name, self.shards, self._now, self._former = source.name, source.shards, source, Former(source, listing)
        self.counts, self._before = self._former.counts, listing

    @property
    def listing(self) -> Listing:
        return self._before

    @property
    def complete(self) -> bool:
        """Whether every shard is still there."""
        return self._former.complete

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, i: int) -> Unit:
        return self._now[self._row(i)]

    def key(self, i: int) -> str:
        return self._now.key(self._row(i))

    def _row(self, i: int) -> int:
        return int(self._former.rows(np.array([i]))[0])

    def sizes(self, rows: Rows) -> Sizes:
        return self._now.sizes(self._former.rows(rows))
