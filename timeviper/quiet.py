"""Silence around imports that talk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torchao_s_notes() -> Iterator[None]:
    """Around what imports torchao, as transformers does if it is there; it tells of kernels for other devices."""
    names = ("torchao", "torch.utils._pytree", "")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
