"""Hooks on the modules of a model, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within it they are called, even where a module was compiled before they came; then they are removed."""
    torch.compiler.set_stance("force_eager")  # compiled modules do not notice new hooks
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.compiler.set_stance("default")
