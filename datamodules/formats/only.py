"""Which entries of a source are taken: those of one split, where its file has several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.fields import plain

SPLITS = ("split", "subset", "set", "fold")
MAX_KINDS = 100  # of values that are counted for a message: a field may be an id


class Only:
    """`FIELD=VALUE` or `FIELD=A,B`, all of which an entry must fulfil; without any, all entries are taken."""

    def __init__(self, rules: Collection[str]) -> None:
        """ValueError for a rule that is none."""
        self.rules: dict[str, set[str]] = {}
        for rule in rules:
            name, equals, values = rule.partition("=")
            if not (equals and name.strip() and values.strip()):
                raise ValueError(f"--only {rule}: write FIELD=VALUE, such as split=train")
            self.rules[plain(name)] = {value.strip() for value in values.split(",")}
        self.written = " ".join(f"--only {rule}" for rule in rules)
        self.left_out = 0
        self.seen: dict[str, Counter[str]] = {}

    def takes(self, entry: Entry) -> bool:
        """Whether an entry is one of them; one that cannot be read counts by what its source says of it."""
        if entry.notes and not entry.fields:  # of which nothing is made anyway
            return True
        fields = entry.fields if isinstance(entry.fields, dict) else entry.raw
        said = {plain(name): value for name, value in fields.items()} if isinstance(fields, dict) else {}
        for name in dict.fromkeys((*self.rules, *SPLITS)):
            there = self.seen.setdefault(name, Counter()) if isinstance(said.get(name), str | int) else None
            if there is not None and (len(there) < MAX_KINDS or str(said[name]) in there):
                there[str(said[name])] += 1
        if not isinstance(fields, dict) or all(_value(said, n) in values for n, values in self.rules.items()):
            return True
        self.left_out += 1
        return False

    def notes(self) -> list[str]:
        """How many were left out; or that there are several splits, all of which were taken."""
        if self.left_out:
            return [f"{self.left_out:,} entries are left out by {self.written}"]
        return [
            f"the entries are of several kinds of {name} ({self._listed(name)}), and all of them are taken; "
            f"--only {name}={next(iter(values))} takes one"
            for name, values in self.seen.items()
            if name in SPLITS and name not in self.rules and 1 < len(values) <= 8
        ]

    def nothing(self) -> str:
        """Why no entry is left."""
        found = [f"{name} is {self._listed(name)}" for name in self.rules if name in self.seen]
        there = "; ".join(found) or "is no such field"
        return f"{self.written} leaves none of its {self.left_out:,} entries; there {there}"

    def _listed(self, name: str) -> str:
        most = self.seen[name].most_common(8)
        return ", ".join(f"{value}: {count:,}" for value, count in most) + (" ..." if len(self.seen[name]) > 8 else "")


def _value(said: dict[str, Any], name: str) -> str | None:
    value = said.get(name)
    return None if value is None else str(value)
