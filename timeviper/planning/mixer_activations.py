"""Bytes that autograd keeps of the operations of a block: norms, the Mamba-2 mixer, attention.

Letters: L tokens, S sequences, H heads, P head size, N state size, `a` bytes of an activation.
"""

from __future__ import annotations

from collections.abc import Sequence

from timeviper.config import DecoderConfig
from timeviper.kernels.ssd_chunked import tokens_per_chunk
from timeviper.model.flops import Execution, attention_batches, chunks

WIDE, INDEX = 4, 8  # bytes of a float32 and of an int64


def norm_saved(L: int, width: int, learns: bool, flow: bool, execution: Execution) -> float:
    """RMSNorm of `[L, width]`, float32 inside. On a CPU it is no single operation."""
    kept, wide, scales = 0.0, WIDE * L * width, WIDE * L
    if execution.device == "cuda":
        return float(wide + scales) if learns or flow else 0.0  # input, and a factor a row
    if flow:
        kept += wide + scales
    if learns:
        kept += wide  # the output before the gain
    return kept


def scan_channels(cfg: DecoderConfig) -> int:
    """What the convolution runs over: the scan's inputs, B and C."""
    return cfg.ssm_heads * cfg.ssm_head_dim + 2 * cfg.ssm_groups * cfg.ssm_state


def projected_bytes(cfg: DecoderConfig, tokens: int, a: int) -> float:
    """Gate, convolution input and step of the Mamba-2 mixer: one tensor."""
    return float(a * tokens * (cfg.ssm_heads * cfg.ssm_head_dim + scan_channels(cfg) + cfg.ssm_heads))


def state_bytes(cfg: DecoderConfig, a: int) -> float:
    """What the convolution and the scan of a block leave of one sequence."""
    convolution = a * scan_channels(cfg) * (cfg.conv_kernel - 1)
    return float(convolution + WIDE * cfg.ssm_heads * cfg.ssm_head_dim * cfg.ssm_state)


def core_saved(cfg: DecoderConfig, lengths: Sequence[int], learns: bool, a: int, execution: Execution) -> float:
    """The Mamba-2 mixer between its two maps, beside what the first gives: convolution, scan and gated norm."""
    L, S, H, N = sum(lengths), len(lengths), cfg.ssm_heads, cfg.ssm_state
    inner, channels = H * cfg.ssm_head_dim, scan_channels(cfg)
    convolution = a * S * channels * (cfg.conv_kernel - 1) + a * L * channels  # states before it; its output
    size = tokens_per_chunk(cfg.chunk_size, cfg.ssm_head_dim * N, max(lengths), execution.device)
    count = sum(n for n, _ in chunks(lengths, size))
    scan = 3 * WIDE * L * H + WIDE * count * inner * N  # steps and decays; states
    # The scan's output and silu(gate), in float32; their product, and its root mean squares.
    gated = WIDE * L * (3 * inner + cfg.ssm_groups)
    if a != WIDE:
        gated += WIDE * L * inner  # the gate in float32
    if learns:
        gated += WIDE * L * inner  # what its gain is multiplied with
    return float(convolution + scan + gated)


def attention_saved(
    cfg: DecoderConfig,
    queries: Sequence[int],
    keys: Sequence[int],
    mixes: bool,
    last_input: bool,
    a: int,
    masked: bool = False,
) -> float:
    """Fused attention (where queries, keys or values carry a gradient: `mixes`) and, if the last map keeps it, the
    input of that. `masked`: with a count of visible keys for every query."""
    n, m = sum(queries), sum(keys)
    q = a * cfg.heads * cfg.head_dim  # bytes of one token's queries, or of its output
    kv = 2 * a * cfg.kv_heads * cfg.head_dim  # ... of its key and value
    if not mixes:
        return float(n * q) if last_input else 0.0
    batches = [b for b in attention_batches(queries, keys) if b[2]]
    together = [b for b in batches if b[0] > 1]
    kept = 0.0
    for members, longest_q, longest_k in batches:
        rows = members * longest_q
        kept += rows * (q + WIDE * cfg.heads)  # output; logarithms of the softmax's sums
        if masked:
            kept += rows * (a * longest_k + 1)  # the mask as numbers, and whether a row sees anything
        if members > 1:  # padded copies and their rows in the stream
            kept += rows * q + members * longest_k * kv + INDEX * members * (longest_q + longest_k)
    if len(together) < len(batches):  # a sequence alone is a view of the whole stream
        kept += n * q + m * kv
    ordered = len(batches) == 1 and len(set(queries)) == 1  # the kernel's own output is that of the whole stream
    if last_input and (masked or not ordered):
        kept += n * q
    if together and not ordered:
        kept += INDEX * n  # the order in which the outputs are put together
    return kept
