"""Figures for Prometheus, in its text form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from timeviper.serving.engine import Engine
from timeviper.serving.videos import States


@dataclass
class HttpCounts:
    """What the doors have seen."""

    replies: Counter[int] = field(default_factory=Counter)
    """By status."""
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    open_streams: int = 0

    def first(self, seconds: float) -> None:
        self.first_token_seconds += seconds
        self.first_tokens += 1


def metrics_text(engine: Engine, states: States, http: HttpCounts) -> str:
    """All figures."""
    counts, found = engine.counts, list[tuple[str, str, str, float]]()
    gauges = {
        "rows": ("Answers that are being written.", engine.rows),
        "prompts_reading": ("Prompts that are being read.", engine.reading),
        "requests_waiting": ("Requests in the queue.", engine.waiting),
        "state_bytes": ("Bytes predicted for all requests under way.", engine.held),
        "state_bytes_limit": ("Bytes that these may have.", engine.budget),
        "kept_states": ("States of videos in memory.", len(states)),
        "kept_state_bytes": ("Bytes of these.", states.bytes),
        "open_streams": ("Streams that are being sent.", http.open_streams),
    }
    counters = {
        "steps": ("Steps in which answers grew by a token.", counts.steps),
        "prompt_slices": ("Pieces of prompts that were read.", counts.slices),
        "tokens_written": ("Tokens of answers.", counts.tokens),
        "requests": ("Requests that were queued.", counts.requests),
        "requests_finished": ("Requests that were answered to the end.", counts.finished),
        "requests_aborted": ("Requests whose client left.", counts.aborted),
        "requests_failed": ("Requests that ended with an error.", counts.failed),
        "requests_refused": ("Requests that found the queue full.", counts.refused),
        "state_hits": ("Questions that found their video's state.", states.hits),
        "state_misses": ("Questions whose video was read first.", states.misses),
        "first_token_seconds": ("Seconds from a request to its first token, summed.", http.first_token_seconds),
        "first_tokens": ("Requests that got a first token.", http.first_tokens),
    }
    found += [(name, "gauge", *rest) for name, rest in gauges.items()]
    found += [(f"{name}_total", "counter", *rest) for name, rest in counters.items()]
    lines = []
    for name, kind, about, value in found:
        name = f"timeviper_{name}"
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value:g}"]
    name = "timeviper_http_replies_total"
    lines += [f"# HELP {name} Replies by status.", f"# TYPE {name} counter"]
    lines += [f'{name}{{status="{status}"}} {n}' for status, n in sorted(http.replies.items())]
    return "\n".join(lines) + "\n"
