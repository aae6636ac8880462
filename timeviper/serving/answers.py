"""Answers that are being written, each a row: they join, grow by a token at every step, and leave.

A row leaves at the step at which it ends, or at which its client has gone. Greedy answers are the same bits alone and
among others (see `rows.py`), and what goes wrong with one row ends that row alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from timeviper.inference.prefill import Prefilled
from timeviper.model.viper import TimeViper
from timeviper.serving.jobs import Counts, Job
from timeviper.serving.rows import Rows, copies
from timeviper.serving.writing import Style, Writer
from timeviper.tokenizer import Tokenizer

log = logging.getLogger("timeviper")


@dataclass(eq=False)
class Row:
    """One answer that is being written, and where."""

    job: Job
    number: int
    writer: Writer
    group: Rows
    place: int
    last: int
    """The token that the next step reads."""


class Answers:
    """The rows of all requests, in groups that are computed together."""

    def __init__(
        self, model: TimeViper, tokenizer: Tokenizer, width: int, counts: Counts, leave: Callable[[Job, str], None]
    ) -> None:
        """width: rows of a group. leave: told when the last answer of a request has ended, and how."""
        self.model, self.tokenizer, self.width, self.counts = model, tokenizer, width, counts
        self.rows: list[Row] = []
        self._groups: list[Rows] = []
        self._leave = leave

    def join(self, job: Job, style: Style, start: Prefilled) -> None:
        """The first token of each answer, then its row."""
        logits = self.model.decoder.project(start.hidden)
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the logits after the prompt are not finite: the weights or the frames hold NaN")
        self.counts.prompts += 1
        likeliest, device = int(logits.argmax(-1)), logits.device
        job.open_rows = style.choices
        for number, state in enumerate(copies(start.state, style.choices)):
            writer = Writer(self.tokenizer, style, number, device)
            token = writer.choose(logits, likeliest)
            shown = writer.take(token, logits, self.tokenizer.stop_ids)
            self._count(job)
            job.on_text(number, shown)
            if shown.end:
                self._close(job)
                continue
            group = self._group_with_room()
            place = group.put(state, style.max_new_tokens)
            self.rows.append(Row(job, number, writer, group, place, token))
        self.counts.most_rows = max(self.counts.most_rows, len(self.rows))

    def step(self) -> bool:
        """A token of every answer; whether there was any."""
        stepped = [self._step(group) for group in list(self._groups)]
        self._gather()
        return any(stepped)

    def drop_gone(self) -> None:
        for row in [row for row in self.rows if row.job.gone]:
            self._end(row, "aborted")

    def drop(self, job: Job) -> None:
        """A request's rows, of which nobody is told."""
        for row in [row for row in self.rows if row.job is job]:
            row.group.drop(row.place)
            self.rows.remove(row)

    def clear(self) -> set[Job]:
        """All of them; whose they were."""
        jobs = {row.job for row in self.rows}
        self.rows, self._groups = [], []
        return jobs

    def _group_with_room(self) -> Rows:
        group = next((group for group in self._groups if group.count < self.width), None)
        if group is None:
            group = Rows(self.model.decoder, self.width)
            self._groups.append(group)
        return group

    def _step(self, group: Rows) -> bool:
        rows = [row for row in self.rows if row.group is group]
        if not rows:
            return False
        ids = [0] * self.width
        for row in rows:
            ids[row.place] = row.last
        self.counts.steps += 1
        try:
            logits = group.step(ids)
            likeliest = logits.argmax(-1).tolist()
        except Exception as error:  # of no row in particular, such as a device without memory
            for row in rows:
                row.job.gone = True
                row.job.on_error(error)
            log.exception("a step of the engine failed")
            return True
        for row in rows:
            try:
                self._extend(row, logits[row.place : row.place + 1], likeliest[row.place])
            except Exception as error:
                self._end(row, "failed")
                row.job.on_error(error)
        return True

    def _extend(self, row: Row, logits: torch.Tensor, likeliest: int) -> None:
        if row.job.gone:
            return self._end(row, "aborted")
        row.last = row.writer.choose(logits, likeliest)
        shown = row.writer.take(row.last, logits, self.tokenizer.stop_ids)
        self._count(row.job)
        if shown.end:
            self._end(row, "finished")
        if shown.text or shown.end or shown.logprobs:
            row.job.on_text(row.number, shown)

    def _count(self, job: Job) -> None:
        self.counts.tokens += 1
        job.tokens += 1

    def _gather(self) -> None:
        """Rows of the last group move to free places of others: fewer groups are fewer steps."""
        while len(self._groups) > 1 and len(self.rows) <= self.width * (len(self._groups) - 1):
            last = self._groups.pop()
            for row in [row for row in self.rows if row.group is last]:
                state = last.take(row.place)
                row.group = self._group_with_room()
                row.place = row.group.put(state, row.writer.style.max_new_tokens - row.writer.count)

    def _end(self, row: Row, how: str) -> None:
        row.group.drop(row.place)
        self.rows.remove(row)
        self._close(row.job, how)

    def _close(self, job: Job, how: str = "finished") -> None:
        """One answer of a request has ended."""
        job.open_rows -= 1
        if job.open_rows == 0:
            self._leave(job, how)
