"""What happens in a video of the procedural world, before any pixel: objects, times, places, held-out looks.

One object is one event: it is there from `start` to `end` and nothing else is at that time, except in images.
The objects of a scene differ in colour and in shape, so that either names one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.random import Generator

# Far apart from each other after halving the chroma resolution (4:2:0), and bright on every background.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 255),
    "yellow": (240, 220, 40),
    "magenta": (225, 50, 225),
    "cyan": (40, 215, 225),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES: dict[str, float] = {"small": 11 / 64, "large": 14.5 / 64}  # radius as a share of the frame's side
MOTIONS = ("left", "right", "up", "down", "stay")
ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")

# Two looks a shape that training never shows. Captions do not tell the size: words that never follow each
# other in training would be a trap for the decoder's language, not a test of its eyes.
_HELD_OUT = frozenset(
    {
        ("small", "yellow", "circle"),
        ("large", "white", "circle"),
        ("small", "cyan", "square"),
        ("large", "green", "square"),
        ("small", "red", "triangle"),
        ("large", "magenta", "triangle"),
        ("small", "blue", "cross"),
        ("large", "yellow", "cross"),
        ("small", "magenta", "ring"),
        ("large", "red", "ring"),
    }
)

CELL = 0.235  # distance of the centres of two of the nine cells: a large object just fits at the border
# Of a centre, either way. What stands still can be almost anywhere in its cell, as moving objects come by everywhere:
# a tower that only ever saw the middles of cells takes shapes between them for others (0.55 right, against 1.00).
JITTER, JITTER_ALONG = 0.09, 0.03
TRAVEL = (0.38, 0.46)  # how far a moving object gets, as a share of the frame


def held_out_looks() -> frozenset[tuple[str, str, str]]:
    """(size, colour, shape) that never occur in training data: 10 of 70."""
    return _HELD_OUT


def is_held_out(look: tuple[str, str, str]) -> bool:
    """Whether training never shows this (size, colour, shape)."""
    return look in _HELD_OUT


@dataclass(frozen=True)
class Event:
    """One object from `start` to `end` in seconds; centres run evenly from `begin` to `finish` (x, y in 0..1)."""

    start: float
    end: float
    size: str
    colour: str
    shape: str
    motion: str
    row: int  # cell of `begin`: 0 top, 1 middle, 2 bottom
    column: int  # 0 left, 1 middle, 2 right
    begin: tuple[float, float]
    finish: tuple[float, float]

    @property
    def pair(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """The cell in which it begins: "top left", ..., "centre"."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}".strip() or "centre"


@dataclass(frozen=True)
class Scene:
    """A whole video, or an image (`duration` 0); `seed` draws background and noise."""

    duration: float
    fps: float
    events: tuple[Event, ...]
    seed: int
    pixels: int = 64
    offset: float = 0.0
    """What the clock, which the events go by, shows at its first frame: of a video cut out of a longer one."""

    @property
    def frames(self) -> int:
        return max(1, round(self.duration * self.fps))


def draw_looks(rng: Generator, count: int, held_out: bool | None) -> list[tuple[str, str, str]]:
    """`count` (size, colour, shape) with all colours and all shapes different.

    held_out False: no held-out look; True: at least one; None: as it comes.
    """
    sizes, colours = list(SIZES), list(COLOURS)
    while True:
        looks = [
            (sizes[z], colours[c], SHAPES[s])
            for z, c, s in zip(
                rng.integers(len(sizes), size=count),
                rng.permutation(len(COLOURS))[:count],
                rng.permutation(len(SHAPES))[:count],
            )
        ]
        if held_out is None or held_out == any(look in _HELD_OUT for look in looks):
            return looks


def draw_times(rng: Generator, duration: float, count: int, shortest: int, longest: int) -> list[tuple[float, float]]:
    """`count` stretches of whole seconds, in order: one frame a second sees exactly where they begin and end."""
    total = int(duration)
    low, high = shortest, min(longest, total // count)
    if low > high:
        raise ValueError(f"{count} events of at least {shortest} s do not fit into {duration} s")
    lengths = rng.integers(low, high + 1, count)
    # The time left over falls into the gaps around the events, every division of it alike.
    gaps = np.sort(rng.integers(0, total - lengths.sum() + 1, count))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return [(float(s), float(s + n)) for s, n in zip(starts, lengths)]


def draw_path(
    rng: Generator, motion: str, row: int, column: int, radius: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last centre of an object that begins in a cell; all of it stays in the frame."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    far, middle = rng.uniform(*TRAVEL), np.array([0.5 + CELL * (column - 1), 0.5 + CELL * (row - 1)])
    jitter = np.where([dx, dy], JITTER_ALONG, JITTER)
    begin = np.clip(middle + rng.uniform(-jitter, jitter), radius, 1 - radius)
    finish = np.clip(begin + far * np.array([dx, dy]), radius, 1 - radius)
    return (float(begin[0]), float(begin[1])), (float(finish[0]), float(finish[1]))


def draw_event(rng: Generator, look: tuple[str, str, str], start: float, end: float) -> Event:
    """An object that moves, or stays in one case of five; who moves starts at the side opposite to where it goes."""
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    row, column = int(rng.integers(3)), int(rng.integers(3))
    row = {"up": 2, "down": 0}.get(motion, row)
    column = {"left": 2, "right": 0}.get(motion, column)
    return Event(start, end, *look, motion, row, column, *draw_path(rng, motion, row, column, SIZES[look[0]]))


def draw_video(
    rng: Generator,
    duration: float,
    fps: float,
    count: int,
    held_out: bool | None,
    lasting: tuple[int, int] = (2, 4),
    pixels: int = 64,
) -> Scene:
    """A video of `duration` seconds with `count` events that last between `lasting` seconds."""
    looks = draw_looks(rng, count, held_out)
    times = draw_times(rng, duration, count, *lasting)
    events = tuple(draw_event(rng, look, *when) for look, when in zip(looks, times))
    return Scene(duration, fps, events, int(rng.integers(2**31)), pixels)


def late(scene: Scene, offset: float) -> Scene:
    """The same with a clock that shows `offset` at its first frame."""
    events = tuple(replace(e, start=e.start + offset, end=e.end + offset) for e in scene.events)
    return replace(scene, events=events, offset=offset)


def draw_image(rng: Generator, count: int, held_out: bool | None, pixels: int = 64) -> Scene:
    """A picture of `count` objects that do not touch, in reading order: from the top, then from the left."""
    looks = draw_looks(rng, count, held_out)
    while True:
        cells = sorted(int(c) for c in rng.permutation(9)[:count])
        radii = [SIZES[size] for size, _, _ in looks]
        paths = [draw_path(rng, "stay", *divmod(cell, 3), radius) for cell, radius in zip(cells, radii)]
        if _apart([p[0] for p in paths], radii):
            break
    events = tuple(
        Event(0.0, 1.0, *look, "stay", *divmod(cell, 3), *path) for look, cell, path in zip(looks, cells, paths)
    )
    return Scene(0.0, 1.0, events, int(rng.integers(2**31)), pixels)


def _apart(centres: list[tuple[float, float]], radii: list[float]) -> bool:
    """No two objects touch: the larger of the distances along x and y is beyond both radii."""
    discs = list(zip(centres, radii))
    return all(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) > ra + rb for i, (a, ra) in enumerate(discs) for b, rb in discs[:i]
    )


def in_order(scene: Scene) -> bool:
    """Events follow each other in time."""
    return all(a.end <= b.start for a, b in pairwise(scene.events))
