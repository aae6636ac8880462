"""How sources are mixed: a pure function of the recipe and of counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from timeviper.datamodules.source import Source, Unit

__all__ = ["Mixture", "Source", "Unit", "UsedUp"]


class UsedUp(ValueError):
    """No source with a positive weight has units left."""


class Mixture:
    """Draws from several sources so that their shares follow the weights at every moment.

    Stride scheduling: next is the source that would be least ahead of its share after its next unit. Shares are
    counted in whatever `draw` is told that a unit is worth: 1 for samples, or its tokens. No randomness.
    """

    def __init__(
        self, sources: Mapping[str, Source], seed: int, window: int, epochs: Mapping[str, float | None] | None = None
    ) -> None:
        """`epochs`: how often a source may be gone through at most (None: no bound)."""
        epochs = epochs or {}
        self._streams = {name: s.stream(seed, window, epochs.get(name)) for name, s in sources.items()}
        self._next = {name: next(stream, None) for name, stream in self._streams.items()}
        self._weights: dict[str, float] = {}
        self._passes: dict[str, float] = {}

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the shares; a weight of 0 pauses a source, which later goes on where it stopped."""
        active = {n: float(weights[n]) for n in self._streams if weights.get(n, 0) > 0}
        if not active:
            raise ValueError(f"every source has weight 0: {dict(weights)}; give one a positive weight")
        if active != self._weights:
            self._weights = active
            self._passes = dict.fromkeys(active, 0.0)

    def draw(self, worth: Callable[[Unit], float] = lambda _: 1.0) -> Unit:
        """The next unit. Raises `UsedUp` when the sources that are not paused have gone through their epochs."""
        after = {
            name: self._passes[name] + worth(unit) / weight
            for name, weight in self._weights.items()
            if (unit := self._next[name]) is not None
        }
        if not after:
            raise UsedUp(f"the sources {', '.join(self._weights)} have gone through all the epochs that they may")
        name = min(after, key=lambda n: (after[n], n))
        self._passes[name] = after[name]
        unit, self._next[name] = self._next[name], next(self._streams[name], None)
        assert unit is not None
        return unit
