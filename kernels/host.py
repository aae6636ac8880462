"""From the host to the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers that the host has, as a tensor on the device.

    `torch.tensor(values, device="cuda")` stops the host until the device has done all that it was told before; a copy
    from pinned memory is told, too, and the host goes on.
    """
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
