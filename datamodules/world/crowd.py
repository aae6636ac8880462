"""A crowded video: more objects, one after the other, than a state of fixed size can hold, and questions that each need
one of them.

What a question says (its words, times and numbers, how long the video is) tells nothing about the answer: the objects
of a video are drawn without repetition out of all pairs of colour and shape, and how many there are is of no use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.random import Generator

from timeviper.datamodules.world.questions import Question, ask, moves, span, when_question
from timeviper.datamodules.world.scene import COLOURS, SHAPES, SIZES, Event, Scene, draw_event, draw_times, is_held_out

NUMBERS = ("one", "two", "three", "four", "five")
MOST = len(COLOURS) * len(SHAPES)  # objects of a video: each pair of colour and shape once


def draw_crowd(
    rng: Generator,
    duration: float,
    fps: float,
    count: int,
    held_out: bool,
    lasting: tuple[int, int],
    pixels: int = 64,
) -> Scene:
    """`count` objects, all different in colour or shape, one at a time. held_out: whether the look of one at least is
    among those that training never shows; else none is."""
    looks = draw_looks_of_pairs(rng, count, held_out)
    times = draw_times(rng, duration, count, *lasting)
    events = tuple(draw_event(rng, look, *when) for look, when in zip(looks, times))
    return Scene(duration, fps, events, int(rng.integers(2**31)), pixels)


def draw_looks_of_pairs(rng: Generator, count: int, held_out: bool) -> list[tuple[str, str, str]]:
    """`count` (size, colour, shape), no two of the same colour and shape; held_out: as in `draw_crowd`."""
    if count > MOST:
        raise ValueError(f"{count} objects: there are {MOST} pairs of colour and shape")
    pairs, sizes = [(colour, shape) for colour in COLOURS for shape in SHAPES], list(SIZES)
    while True:
        chosen = [pairs[i] for i in rng.permutation(MOST)[:count]]
        looks = [(sizes[z], *pair) for z, pair in zip(rng.integers(len(sizes), size=count), chosen)]
        if held_out:
            if any(map(is_held_out, looks)):
                return looks
        else:  # the other size of a pair may be shown
            return [_shown(look) for look in looks]


def _shown(look: tuple[str, str, str]) -> tuple[str, str, str]:
    """The same pair in a size that training shows."""
    sizes = [size for size in SIZES if not is_held_out((size, *look[1:]))]
    return look if look[0] in sizes else (sizes[0], *look[1:])


# ---- questions ------------------------------------------------------------------------------------------


def _at(scene: Scene, rng: Generator) -> dict[str, Any]:
    """Which object is there at a time, half a second or more inside of its stretch."""
    event = _any(scene, rng)
    tenths = rng.integers(round(10 * event.start) + 5, round(10 * event.end) - 4)
    return ask(rng, "at", "at", f"a {event.pair}", f"{tenths / 10:.1f} seconds")


def _order(scene: Scene, rng: Generator) -> dict[str, Any]:
    """The neighbour of an object, after it or before."""
    at, way = int(rng.integers(len(scene.events) - 1)), ("after", "before")[rng.integers(2)]
    known, asked = scene.events[at], scene.events[at + 1]
    if way == "before":
        known, asked = asked, known
    return ask(rng, "order", way, f"a {asked.pair}", known.pair)


def _between(scene: Scene, rng: Generator) -> dict[str, Any]:
    """How many objects come between two others: a number drawn first, so that no other is likelier."""
    number = int(rng.integers(min(len(NUMBERS), len(scene.events) - 2)))
    first = int(rng.integers(len(scene.events) - number - 2))
    a, b = scene.events[first], scene.events[first + number + 2]
    answer = "one object" if number == 0 else f"{NUMBERS[number]} objects"
    return ask(rng, "between", "between", answer, f"the {a.pair} and the {b.pair}")


def _seen(scene: Scene, rng: Generator) -> dict[str, Any]:
    """Whether an object was there at all: yes as often as no."""
    there = {(event.colour, event.shape) for event in scene.events}
    if rng.integers(2) or len(there) == MOST:
        pair, answer = _any(scene, rng).pair, "yes"
    else:
        others = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
        pair, answer = " ".join(others[rng.integers(len(others))]), "no"
    return ask(rng, "seen", "seen", answer, pair)


def _direction(scene: Scene, rng: Generator) -> dict[str, Any]:
    event = _any(scene, rng)
    return ask(rng, "direction", "direction", f"the {event.pair} {moves(event)}", event.pair)


def _timeline(scene: Scene, rng: Generator) -> dict[str, Any]:
    """All objects with their times, in order: every label of it needs another object."""
    told = ", then ".join(f"{span(event)} a {event.pair}" for event in scene.events)
    return ask(rng, "timeline", "timeline", f"{told}.")


def _times(scene: Scene, rng: Generator) -> dict[str, Any]:
    """The same in any order, the object first."""
    order = rng.permutation(len(scene.events))
    told = ", ".join(f"the {event.pair} {span(event)}" for event in (scene.events[i] for i in order))
    return ask(rng, "times", "times", f"{told}.")


def _moments(scene: Scene, rng: Generator) -> dict[str, Any]:
    """What is there at one time after the other, in any order of times: as `at`, many times in an answer."""
    order = rng.permutation(len(scene.events))
    told = []
    for event in (scene.events[i] for i in order):
        tenths = rng.integers(round(10 * event.start) + 5, round(10 * event.end) - 4)
        told.append(f"at {tenths / 10:.1f} seconds a {event.pair}")
    return ask(rng, "moments", "moments", f"{', '.join(told)}.")


def _any(scene: Scene, rng: Generator) -> Event:
    return scene.events[rng.integers(len(scene.events))]


CROWD_QUESTIONS: dict[str, Question] = {
    "timeline": _timeline,
    "times": _times,
    "moments": _moments,
    "at": _at,
    "when": when_question,
    "order": _order,
    "between": _between,
    "seen": _seen,
    "direction": _direction,
}


def crowd_questions(scene: Scene, rng: Generator, types: Iterable[str] = CROWD_QUESTIONS) -> list[dict[str, Any]]:
    """One conversation of each type; of a scene of three objects or more."""
    asked = (CROWD_QUESTIONS[kind](scene, rng) for kind in types)
    return [conversation for conversation in asked if conversation]
