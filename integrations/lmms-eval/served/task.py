"""What lmms-eval calls for each item of `items.jsonl`."""

from __future__ import annotations


def videos(doc: dict) -> list[str]:
    return [doc["video"]]


def scores(doc: dict, results: list[str]) -> dict[str, float]:
    """Right is the very text."""
    return {"right": float(results[0].strip().lower() == doc["answer"].strip().lower())}
