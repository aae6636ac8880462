"""Where the plan stands before a step: small enough for a file beside each checkpoint, and never more than a shortcut.

A state is believed where it is of the same plan (`Plan.identity`) and its digest holds; any other is as good as none,
and the plan goes the way from an earlier one, or from the beginning.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from timeviper.datamodules.mixture import Standing
from timeviper.datamodules.order import Place, digest

VERSION = 1


@dataclass(frozen=True)
class PlanState:
    """Before a step of the plan is filled."""

    step: int
    standing: Standing = field(default_factory=Standing)
    waiting: tuple[tuple[str, int], ...] = ()
    """Source and number of the units that found no room in the steps before, in order."""

    def encode(self, plan: str) -> str:
        """A file of one line; `plan` is the identity of the plan."""
        names = sorted({name for name, _ in self.waiting})
        numbers = {name: i for i, name in enumerate(names)}
        content = {
            "version": VERSION,
            "plan": plan,
            "step": self.step,
            **asdict(self.standing),
            "names": names,
            "waiting": [[numbers[name], row] for name, row in self.waiting],
        }
        return json.dumps(content | {"digest": digest(canonical(content))}) + "\n"

    @staticmethod
    def decode(text: str, plan: str) -> PlanState | None:
        """None for what is damaged, of another version, or of another plan."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("digest") != digest(canonical(content)):
                return None
            if (content["version"], content["plan"]) != (VERSION, plan):
                return None
            places = {name: Place(**place) for name, place in content["places"].items()}
            standing = Standing(places, content["weights"], content["passes"])
            names = content["names"]
            return PlanState(content["step"], standing, tuple((names[i], row) for i, row in content["waiting"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None

    @property
    def name(self) -> str:
        """Of all that it says."""
        return digest(self.encode("").encode())


def canonical(content: dict[str, Any]) -> bytes:
    """The same for the same content."""
    return json.dumps(content, sort_keys=True).encode()
