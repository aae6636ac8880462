"""Glimpses: an object a second, each somewhere else, and questions where one of them was.

What a TransV stage is for, in small. A video of 32 seconds shows up to 32 objects for a second each, and nothing else
names a place: neither its time nor its neighbours. Where one frame in ten is left, each survivor would have to hold ten
places, and the state of one Mamba-2 block all of them (`benchmarks/bench_chains.py` measures what it holds).
Training asks for several objects at a time, so that every one of a video is asked for; held out, for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from timeviper.datamodules.world.crowd import CROWD_QUESTIONS, draw_looks_of_pairs
from timeviper.datamodules.world.questions import ask
from timeviper.datamodules.world.scene import SIZES, Event, Scene, draw_path, draw_times

AT_ONCE = 6  # objects that training asks for in one question
TYPES = ("where", "seen", "order", "at", "when")  # one question of each; `places` asks for all objects, in turns


def draw_glimpses(rng: Generator, seconds: int, fps: float, count: int, held_out: bool, pixels: int = 64) -> Scene:
    """`count` objects, all different in colour or shape, a whole second each, that stand still in one of nine cells.
    held_out: as in `draw_crowd`."""
    looks = draw_looks_of_pairs(rng, count, held_out)
    times = draw_times(rng, seconds, count, 1, 1)
    events = tuple(_glimpse(rng, look, *when) for look, when in zip(looks, times))
    return Scene(float(seconds), fps, events, int(rng.integers(2**31)), pixels)


def _glimpse(rng: Generator, look: tuple[str, str, str], start: float, end: float) -> Event:
    row, column = int(rng.integers(3)), int(rng.integers(3))
    return Event(start, end, *look, "stay", row, column, *draw_path(rng, "stay", row, column, SIZES[look[0]]))


def glimpse_questions(scene: Scene, rng: Generator) -> list[dict[str, Any]]:
    """Conversations about a scene: `places` for all of its objects, a few at a time, and one of each other type."""
    order = rng.permutation(len(scene.events))
    parts = [order[first : first + AT_ONCE] for first in range(0, len(order), AT_ONCE)]
    places = [_places(rng, "places", [scene.events[i] for i in part]) for part in parts]
    where = _places(rng, "where", [scene.events[rng.integers(len(scene.events))]])
    return [*places, where, *filter(None, (CROWD_QUESTIONS[kind](scene, rng) for kind in TYPES[1:]))]


def _places(rng: Generator, kind: str, events: Sequence[Event]) -> dict[str, Any]:
    """ "Where is the red circle and the blue ring?": "the red circle at the top and the blue ring at the centre"."""
    names = " and the ".join(event.pair for event in events)
    return ask(rng, kind, "where", " and ".join(f"the {event.pair} at the {event.place}" for event in events), names)
