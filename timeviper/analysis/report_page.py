"""The report of a run as a page: its scores, its held-out samples, and the curves of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from timeviper.analysis.draw import Bar, Line, bars, lines
from timeviper.analysis.log_curves import Curve, thinned
from timeviper.analysis.page import Figure, Grid, Page, Section
from timeviper.analysis.report import Shown
from timeviper.analysis.strips import Strip, Thumb, film, timeline
from timeviper.inference.eval_report import Report

POINTS = 300  # of a curve
LONG = 24  # frames, above which survivors are drawn over seconds, too
# What is drawn together, by how names begin: title, unit, prefixes, log axis.
CHARTS = (
    ("Loss", "nats a token", ("train/loss", "val/loss"), False),
    ("Held-out accuracy", "share right", ("val/accuracy/",), False),
    ("Tokens right in training", "share", ("train/accuracy",), False),
    ("TransV: gates", "tanh(alpha)", ("transv/gate/",), False),
    ("TransV: what compression changes", "KL, nats a token", ("transv/kl",), False),
    ("TransV: attention that is moved", "share of a row", ("transv/moved/", "transv/vision_attention/"), False),
    ("TransV: agreement with the question's rows", "1: same, 0: chance", ("transv/agreement/",), False),
    ("TransV: entropy of the choice", "share of the largest", ("transv/entropy/",), False),
    ("Learning rate", "log", ("lr/",), True),
    ("Gradient norm", "log", ("train/grad_norm",), True),
    ("Speed", "tokens a second", ("speed/tokens_per_s", "speed/tokens_left_per_s"), False),
)
NOTES = (
    "A few samples are anecdotes; the scores above are of all held-out questions.",
    "Tokens that survive a stage are not all that the model knows of a frame: what is dropped was read by the blocks "
    "before, and TransV hands some of it on.",
    "Surviving tokens say what a ranking kept, not what the answer used: `timeviper look` asks that.",
)


def page(
    name: str,
    facts: Sequence[tuple[str, object]],
    curves: Mapping[str, Curve],
    scores: Report | None,
    shown: Sequence[Shown],
    gates: Mapping[str, float],
    warnings: Sequence[str],
) -> Page:
    sections = [_scores(scores, warnings), *([_gates(gates)] if gates else [])]
    sections += [_sample(number, one) for number, one in enumerate(shown, 1)]
    if curves:
        sections.append(_log(curves))
    right = sum(one.correct for one in shown)
    lead = f"{len(shown)} held-out samples, {right} answered rightly." if shown else "The log of a run."
    if scores:
        lead = f"{scores.scores.accuracy['overall']:.3f} of {scores.n['overall']} held-out questions right. " + lead
    return Page(f"Report: {name}", lead, sections, facts, NOTES)


def _scores(report: Report | None, warnings: Sequence[str]) -> Section:
    if report is None:
        text = "Not evaluated yet: `timeviper eval RUN` answers all held-out questions; then the table stands here."
        return Section("Scores", [text], warnings=warnings)
    columns = report.columns()
    rows = [[kind, n, *(scores.accuracy.get(kind) for scores in columns.values())] for kind, n in report.n.items()]
    if report.scores.miou is not None:
        rows.append(["when: mean IoU", report.n.get("when"), *(scores.miou for scores in columns.values())])
    items = [Bar(name, scores.accuracy["overall"], colour=i) for i, (name, scores) in enumerate(columns.items())]
    drawing = bars("Right answers, all questions", items, "share right")
    table = Grid("Share right by type of question", ["question", "n", *columns], rows)
    caption = "Blind: the same model with grey frames. Chance: right answers of other questions of the same type."
    return Section("Scores", figures=[Figure(drawing, caption, table)], warnings=warnings)


def _gates(gates: Mapping[str, float]) -> Section:
    items = [Bar(name, value) for name, value in gates.items()]
    text = "tanh(alpha): with which each TransV stage adds what the text receives; 0 adds nothing."
    return Section("TransV gates", [text], [Figure(bars("Gates", items, "tanh(alpha)"), "At the end of training.")])


def _sample(number: int, one: Shown) -> Section:
    facts = Grid(
        f"Sample {number}",
        ["", one.key],
        [
            ["question", one.question],
            ["right answer", one.right],
            ["the model's", one.written],
            ["verdict", "right" if one.correct else "wrong"],
            ["loss of the right answer", f"{one.loss:.3g} nats a token"],
            *([["truth", f"{one.truth[0]:g} to {one.truth[1]:g} s"]] if one.truth else []),
        ],
    )
    figures = []
    if one.pixels:
        figures.append(Figure(_film(one), _caption(one), _survivors(one)))
    if one.survivors and (len(one.times) > LONG or not one.pixels):
        figures.append(Figure(_over_time(one), "Share of each frame's tokens that is left behind each stage."))
    verdict = "right" if one.correct else "wrong"
    return Section(f"{number}. {one.type or 'question'}: {verdict}", figures=figures, tables=[facts])


def _film(one: Shown):
    stages = [*one.survivors]
    thumbs = [
        Thumb(
            one.times[i],
            pixels,
            [one.survivors[stage][i] / one.tokens for stage in stages],
            one.truth is not None and one.truth[0] <= one.times[i] <= one.truth[1],
        )
        for i, pixels in zip(one.frames, one.pixels)
    ]
    return film(f"{len(thumbs)} of {len(one.times)} frames", thumbs, stages)


def _caption(one: Shown) -> str:
    bars_below = "Bars: share of a frame's tokens left behind each stage. " if one.survivors else "No TransV stage. "
    return bars_below + ("Framed: within the right answer's seconds." if one.truth else "")


def _survivors(one: Shown) -> Grid | None:
    if not one.survivors:
        return None
    columns = ["second", *(f"left behind {stage}, of {one.tokens}" for stage in one.survivors)]
    rows = [[f"{one.times[i]:.6g}", *(n[i] for n in one.survivors.values())] for i in one.frames]
    return Grid("Tokens of each frame", columns, rows, folded=True)


def _over_time(one: Shown):
    edges = [*one.times, one.times[-1] + (one.times[-1] - one.times[-2] if len(one.times) > 1 else 1.0)]
    strips = [Strip(stage, [n / one.tokens for n in left]) for stage, left in one.survivors.items()]
    return timeline("Survivors over time", strips, edges, "share of a frame's tokens", truth=one.truth, by_row=False)


def _log(curves: Mapping[str, Curve]) -> Section:
    figures = []
    for title, unit, prefixes, log in CHARTS:
        chosen = {n: c for n, c in curves.items() if any(n == p or n.startswith(p) for p in prefixes)}
        series = []
        for name, curve in chosen.items():
            points = [(s, v) for s, v in thinned(curve, POINTS) if v > 0 or not log]
            if points:
                steps, values = zip(*points)
                series.append(Line(_short(name), steps, values))
        if series:
            rows = [
                [_short(n), c[0][1], c[-1][1], min(v for _, v in c), max(v for _, v in c)] for n, c in chosen.items()
            ]
            table = Grid(f"{title}: ends", ["curve", "first", "last", "lowest", "highest"], rows, folded=True)
            figures.append(Figure(lines(title, series, "step", unit, log_y=log), f"{unit}, by step.", table))
    rest = sorted(
        set(curves) - {n for _, _, ps, _ in CHARTS for n in curves if any(n == p or n.startswith(p) for p in ps)}
    )
    other = [Grid("Other numbers of the log", ["name", "last"], [[n, curves[n][-1][1]] for n in rest], folded=True)]
    return Section("The log", figures=figures, tables=other if rest else [])


def _short(name: str) -> str:
    return name.removeprefix("val/accuracy/").removeprefix("transv/").removeprefix("speed/").removeprefix("gate/")
