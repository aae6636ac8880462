"""Windows of time in replies, and how well they are met: IoU, recall at a threshold (> or >=), mean IoU.

Evaluators differ in what they read ("2 to 3" inside a sentence, MM:SS), in rounding, and in whether a threshold that is
just reached counts. `READERS` and `Meets` name each of these rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

Window = tuple[float, float]
"""[start, end] in seconds."""

THRESHOLDS = (0.3, 0.5, 0.7)


def iou(a: Window, b: Window) -> float:
    """Intersection over union of two windows; 0 where one of them has no length."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = max(0.0, a[1] - a[0]) + max(0.0, b[1] - b[0]) - shared
    return shared / union if shared > 0 else 0.0


def best_iou(said: Window | None, true: Iterable[Window]) -> float:
    """Of a reply's window with the true one that it meets best (QVHighlights has several); 0 without a window."""
    return 0.0 if said is None else max((iou(said, window) for window in true), default=0.0)


def meets(value: float, threshold: float, strictly: bool) -> bool:
    """Whether an IoU counts. strictly: it must be above (TimeViper, time-r1), else it may just reach it (lmms-eval,
    TimeLens, VTimeLLM, moment_detr). As floats are: 5/10 reaches 0.5."""
    return value > threshold if strictly else value >= threshold


def recall(values: Sequence[float], threshold: float, strictly: bool) -> float:
    """Share of questions whose first window meets the threshold: R1@threshold, 0 to 1."""
    return sum(meets(value, threshold, strictly) for value in values) / len(values) if values else 0.0


def mean_iou(values: Sequence[float]) -> float:
    """0 to 1."""
    return sum(values) / len(values) if values else 0.0


def recall_at(
    said: Sequence[Sequence[Window]], true: Sequence[Sequence[Window]], k: int, threshold: float, strictly: bool
) -> float:
    """R@k: share of questions of which one of the first k windows that were said meets the threshold."""
    hit = [any(meets(best_iou(w, truth), threshold, strictly) for w in one[:k]) for one, truth in zip(said, true)]
    return sum(hit) / len(hit) if hit else 0.0


AP_THRESHOLDS = tuple(i / 100 for i in range(50, 100, 5))
AP_WINDOWS = 10
"""That are looked at of a reply (QVHighlights)."""


def average_precision(said: Sequence[Window], true: Sequence[Window], threshold: float) -> float:
    """Of ranked windows, 0 to 1, as moment_detr scores QVHighlights: each takes the true window that it meets best
    (>=) of those that are left; the area under precision, made to fall, over recall. 0 without windows."""
    left, hits = list(true), []
    for window in said[:AP_WINDOWS]:
        best = max(left, key=lambda one: iou(window, one), default=None)
        hits.append(best is not None and iou(window, best) >= threshold)
        if best is not None and hits[-1]:
            left.remove(best)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    return sum(max(precision[i:]) for i, hit in enumerate(hits) if hit) / len(true) if true else 0.0


def mean_average_precision(said: Sequence[Window], true: Sequence[Window]) -> float:
    """Over `AP_THRESHOLDS`."""
    return sum(average_precision(said, true, t) for t in AP_THRESHOLDS) / len(AP_THRESHOLDS)


# ---- reading ---------------------------------------------------------------------------------------------

_NUMBER = r"\d+(?:\.\d+)?"
_CLOCK = re.compile(r"(?<![\d.])(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)(?!\d|:\d)")
_UNIT = r"(?:\s*(?:seconds?|secs?|s)\b)?"
_PAIR = re.compile(rf"({_NUMBER}){_UNIT}\s*(?:-|–|—|~|\bto\b|\band\b|\buntil\b)\s*({_NUMBER}){_UNIT}", re.IGNORECASE)

WindowReader = Callable[[str], Window | None]


def seconds_of(text: str) -> str:
    """A text with every MM:SS or H:MM:SS as seconds."""
    return _CLOCK.sub(lambda m: f"{int(m[1] or 0) * 3600 + int(m[2]) * 60 + float(m[3]):g}", text)


def last_numbers(reply: str) -> Window | None:
    """The last two numbers of a reply, if the second is the greater: what `timeviper eval` reads."""
    numbers = [float(n) for n in re.findall(_NUMBER, reply)][-2:]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] < numbers[1] else None


def last_pair(reply: str) -> Window | None:
    """TimeViper's and time-r1's: the last "x to y" or "x and y"."""
    found = re.findall(rf"({_NUMBER})\s*(?:seconds?|s)?\s*(?:to|and)\s*({_NUMBER})", reply)
    return (float(found[-1][0]), float(found[-1][1])) if found else None


_SPANS = tuple(
    re.compile(rf"({one}){unit}\s*[–-]\s*({one}){unit}")
    for one, unit in ((r"\b\d{1,2}:\d{2}(?::\d{2})?", ""), (r"\d+(?:\.\d+)?", ""), (r"\d+(?:\.\d+)?", r"\s*s?"))
)
_SINGLES = re.compile(r"\b(\d{1,2}:\d{2}(?::\d{2})?)\b"), re.compile(r"\b(\d+(?:\.\d+)?)\b")


def lmms_eval(reply: str) -> Window | None:
    """lmms-eval's of Charades-STA: every "to" becomes "-", even within a word; of lines with "start", "end" or "happen"
    (else of all) the first "x - y", clock times first; or times that stand alone, two by two. One that is turned
    around is turned back."""
    lines = re.split(r"[!?\n]", reply.lower().replace("to", "-"))
    lines = [line for line in lines if any(word in line for word in ("start", "end", "happen"))] or lines
    clocks, numbers, with_units = (next((m for line in lines if (m := span.search(line))), None) for span in _SPANS)
    alone = [t for line in lines for t in _SINGLES[0].findall(line)]
    first = [m[1] for line in lines if (m := _SINGLES[1].search(line))]
    for found in (
        clocks and clocks.groups(),
        numbers and numbers.groups(),
        alone,
        first,
        with_units and with_units.groups(),
    ):
        if found and len(found) > 1:
            start, end = sorted((_clock(found[0]), _clock(found[1])))
            return start, end
    return None


def _clock(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def whole_seconds(reply: str) -> Window | None:
    """TimeLens-Bench's: the first pair, rounded to whole seconds."""
    found = any_pair(reply)
    return None if found is None else (float(round(found[0])), float(round(found[1])))


def any_pair(reply: str) -> Window | None:
    """Ours: the first of "x - y", "x to y", "x and y" with or without a unit, MM:SS as seconds."""
    return next(iter(all_pairs(reply)), None)


def all_pairs(reply: str) -> list[Window]:
    """All of them in order, such as a ranked list; those whose end is before their start left out."""
    pairs = [(float(a), float(b)) for a, b in _PAIR.findall(seconds_of(reply))]
    if not pairs:  # "from 3 seconds, it ends at 5": two numbers and no sign between them
        numbers = [float(n) for n in re.findall(_NUMBER, seconds_of(reply))]
        pairs = list(pairwise(numbers)) if len(numbers) == 2 else []
    return [pair for pair in pairs if pair[0] <= pair[1]]


READERS: dict[str, WindowReader] = {
    "careful": any_pair,
    "last-numbers": last_numbers,
    "timeviper": last_pair,
    "lmms-eval": lmms_eval,
    "timelens": whole_seconds,
}
