"""What holds for every kernel over a packed stream: torch form against definition, and nothing leaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from timeviper.config import KernelConfig
from timeviper.kernels import dispatch
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.cross_entropy import linear_cross_entropy
from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.kernels.ssd import ssd

H, P, G, N, C, K = 4, 3, 2, 5, 6, 4
HKV, HEAD = 2, 8


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Op:
    """One kernel as a function of tensors along the stream, parameters, and states of sequences."""

    name: str
    stream: Callable[[int, int], list[Tensor]]  # (L, seed)
    shared: list[Tensor]
    state: Callable[[int, int], list[Tensor]]  # (S, seed)
    call: Callable[[list[Tensor], list[Tensor], list[Tensor], Bounds], Sequence[Tensor]]

    def run(
        self, form: str, stream: list[Tensor], shared: list[Tensor], state: list[Tensor], bounds: Bounds
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs, and gradients of stream, parameters and states under random weights of every output."""
        leaves = [[t.detach().clone().requires_grad_() for t in group] for group in (stream, shared, state)]
        with dispatch.use(**{self.name: form}):
            outputs = self.call(leaves[0], leaves[1], leaves[2], bounds)
        scalar = torch.stack([(o * normal(99, *o.shape, dtype=o.dtype)).sum() for o in outputs]).sum()
        flat = [t for group in leaves for t in group]
        grads = torch.autograd.grad(scalar, flat, allow_unused=True)
        return [o.detach() for o in outputs], [torch.zeros_like(t) if g is None else g for t, g in zip(flat, grads)]


def _ssd(stream: list[Tensor], shared: list[Tensor], state: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    x, dt, B, C_ = stream
    A, D, bias = shared
    return ssd(x, dt, -A.exp(), B, C_, D, bias, bounds, state[0] if state else None, chunk_size=8)


def _conv(stream: list[Tensor], shared: list[Tensor], state: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    return causal_conv1d(stream[0], shared[0], shared[1], bounds, state[0] if state else None)


def _attention(stream: list[Tensor], shared: list[Tensor], state: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    q, k, v = stream
    return (attention(q, k, v, bounds, bounds, causal=True),)


def _tensors(*shapes: tuple[int, ...]) -> Callable[[int, int], list[Tensor]]:
    return lambda count, seed: [normal(seed + i, count, *shape) for i, shape in enumerate(shapes)]


OPS = [
    Op(
        "ssd",
        _tensors((H, P), (H,), (G, N), (G, N)),
        [normal(1, H), normal(2, H), normal(3, H)],
        _tensors((H, P, N)),
        _ssd,
    ),
    Op("conv1d", _tensors((C,)), [normal(4, C, K), normal(5, C)], _tensors((C, K - 1)), _conv),
    Op("attention", _tensors((H, HEAD), (HKV, HEAD), (HKV, HEAD)), [], lambda S, seed: [], _attention),
]
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
packs = st.lists(st.integers(0, 20), min_size=1, max_size=6)


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@every_op
@given(lengths=packs, seed=st.integers(0, 1000), with_state=st.booleans())
@settings(max_examples=25, deadline=None)
def test_torch_form_is_the_definition(op: Op, lengths: list[int], seed: int, with_state: bool) -> None:
    bounds = Bounds(lengths)
    state = op.state(len(lengths), seed + 50) if with_state else []
    args = (op.stream(sum(lengths), seed), op.shared, state, bounds)
    for got, wanted in zip(op.run("torch", *args), op.run("reference", *args)):
        assert_close(got, wanted)


@every_op
@given(lengths=packs, seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_pack_is_its_sequences(op: Op, lengths: list[int], seed: int) -> None:
    stream, state = op.stream(sum(lengths), seed), op.state(len(lengths), seed + 50)
    (y, *final), grads = op.run("torch", stream, op.shared, state, Bounds(lengths))
    with dispatch.use(**{op.name: "torch"}):
        parts = [t.split(lengths) for t in stream]
        alone = [
            op.call([p[s] for p in parts], op.shared, [t[s : s + 1] for t in state], Bounds([n]))
            for s, n in enumerate(lengths)
        ]
    assert_close([y], [torch.cat([out[0] for out in alone])])
    if final:
        assert_close(final, [torch.cat([out[1] for out in alone])])
    assert all(g.isfinite().all() for g in grads)


@every_op
def test_neighbours_feel_nothing(op: Op) -> None:
    """Exact zero: outputs, states and gradients of the others are bit by bit the same."""
    lengths = [9, 17, 1, 12]
    bounds, changed = Bounds(lengths), 1
    stream, state = op.stream(sum(lengths), 3), op.state(len(lengths), 7)
    before = op.run("torch", stream, op.shared, state, bounds)
    mine = bounds.seq_idx == changed
    other = [torch.where(mine.view(-1, *[1] * (t.dim() - 1)), t * 3 + 1, t) for t in stream]
    after = op.run("torch", other, op.shared, state, bounds)
    y_same = [(b == a)[~mine].all() for b, a in zip(before[0][:1], after[0][:1])]
    rest = torch.arange(len(lengths)) != changed
    s_same = [(b == a)[rest].all() for b, a in zip(before[0][1:], after[0][1:])]
    g_same = [(b == a)[~mine].all() for b, a in zip(before[1][: len(stream)], after[1])]
    assert all(y_same + s_same + g_same)
    assert not (before[0][0] == after[0][0])[mine].any()


@every_op
def test_a_gradient_stays_in_its_sequence(op: Op) -> None:
    lengths = [9, 17, 1, 12]
    bounds = Bounds(lengths)
    stream = [t.requires_grad_() for t in op.stream(sum(lengths), 3)]
    state = [t.requires_grad_() for t in op.state(len(lengths), 7)]
    with dispatch.use(**{op.name: "torch"}):
        y = op.call(stream, op.shared, state, bounds)[0]
    grads = torch.autograd.grad(y[bounds.seq_idx == 1].sum(), stream + state)
    for i, grad in enumerate(grads):
        owner = bounds.seq_idx if i < len(stream) else torch.arange(len(lengths))
        assert (grad[owner != 1] == 0).all()
        assert grad[owner == 1].abs().max() > 0


@every_op
def test_losing_a_boundary_is_seen(op: Op) -> None:
    """Mutation check: one bound around the whole stream must change outputs and gradients."""
    lengths = [9, 17, 4, 12]
    stream = op.stream(sum(lengths), 3)
    right = op.run("torch", stream, op.shared, [], Bounds(lengths))
    wrong = op.run("torch", stream, op.shared, [], Bounds([sum(lengths)]))
    assert (right[0][0] - wrong[0][0]).abs().max() > 1e-3
    streams = list(zip(right[1], wrong[1]))[: len(stream)]
    assert all((a - b).abs().max() > 1e-3 for a, b in streams)


@pytest.mark.parametrize("op", OPS[:2], ids=lambda op: op.name)
@given(lengths=packs, seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_state_carries_on(op: Op, lengths: list[int], seed: int, share: float) -> None:
    """Cutting every sequence anywhere and carrying the state equals the whole."""
    bounds = Bounds(lengths)
    stream, state = op.stream(sum(lengths), seed), op.state(len(lengths), seed + 50)
    firsts = [round(n * share) for n in lengths]
    cut = bounds.position < torch.tensor(firsts)[bounds.seq_idx]
    with dispatch.use(**{op.name: "torch"}):
        y, final = op.call(stream, op.shared, state, bounds)
        y1, middle = op.call([t[cut] for t in stream], op.shared, state, Bounds(firsts))
        rest = Bounds([n - f for n, f in zip(lengths, firsts)])
        y2, final2 = op.call([t[~cut] for t in stream], op.shared, [middle], rest)
    joined = torch.empty_like(y)
    joined[cut], joined[~cut] = y1, y2
    assert_close([joined, final2], [y, final])


@given(
    lengths=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 14)), min_size=1, max_size=6),
    causal=st.booleans(),
    limited=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_cross_attention(lengths: list[tuple[int, int]], causal: bool, limited: bool, seed: int) -> None:
    """Any number of queries and keys, also none; queries that see nothing give and take exactly nothing."""
    bounds_q, bounds_k = Bounds(n for n, _ in lengths), Bounds(m for _, m in lengths)
    visible = torch.randint(0, 12, (bounds_q.num_tokens,)) if limited else None
    q = normal(seed, bounds_q.num_tokens, H, HEAD)
    k, v = (normal(seed + i, bounds_k.num_tokens, HKV, HEAD) for i in (1, 2))

    def run(form: str) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        with dispatch.use(attention=form):
            y = attention(leaves[0], leaves[1], leaves[2], bounds_q, bounds_k, causal, visible)
        grads = torch.autograd.grad((y * normal(9, *y.shape)).sum(), leaves, allow_unused=True)
        return [y.detach()], [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads)]

    outputs, grads = run("torch")
    for got, wanted in zip((outputs, grads), run("reference")):
        assert_close(got, wanted)
    counts, queries = (torch.tensor(b.lengths)[bounds_q.seq_idx] for b in (bounds_k, bounds_q))
    limit = counts - queries + bounds_q.position + 1 if causal else counts
    blind = (limit if visible is None else torch.minimum(limit, visible)) <= 0
    assert (outputs[0][blind] == 0).all()
    assert (grads[0][blind] == 0).all()


def test_attention_cuts_long_masks_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from timeviper.kernels import attention as module

    monkeypatch.setattr(module, "MASK_BUDGET", 100)
    monkeypatch.setattr(module, "SHORT", 8)
    bounds_q, bounds_k = Bounds([13, 5, 30]), Bounds([40, 5, 30])
    q, k, v = normal(0, 48, H, HEAD), normal(1, 75, HKV, HEAD), normal(2, 75, HKV, HEAD)
    with dispatch.use(attention="reference"):
        wanted = attention(q, k, v, bounds_q, bounds_k, causal=True)
    with dispatch.use(attention="torch"):
        assert_close([attention(q, k, v, bounds_q, bounds_k, causal=True)], [wanted])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_norms(groups: int) -> None:
    y, gate, weight = normal(0, 7, 12), normal(1, 7, 12), normal(2, 12)
    calls: list[tuple[Callable[..., Tensor], list[Tensor], list[float]]] = [
        (rms_norm, [y, weight], [1e-5]),
        (gated_rms_norm, [y, gate, weight], [groups, 1e-5]),
    ]
    for function, tensors, options in calls:
        found = []
        for form in ("torch", "reference"):
            leaves = [t.clone().requires_grad_() for t in tensors]
            with dispatch.use(norm=form):
                out = function(*leaves, *options)
            found.append([out.detach(), *torch.autograd.grad((out * normal(3, 7, 12)).sum(), leaves)])
        assert_close(found[0], found[1])
    with pytest.raises(ValueError, match="cannot be cut into 5"):
        gated_rms_norm(y, gate, weight, 5, 1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_linear_cross_entropy(chunk: int) -> None:
    hidden, weight = normal(0, 11, 6), normal(1, 20, 6)
    labels = torch.tensor([3, -100, 0, 19, 7, -100, 7, 1, 2, 5, 5])
    labels[4] = (hidden[4] @ weight.T).argmax()
    found = []
    for form in ("torch", "reference"):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        with dispatch.use(cross_entropy=form):
            loss, correct = linear_cross_entropy(leaves[0], leaves[1], labels, chunk=chunk)
        assert correct[4]
        assert not correct[labels == -100].any()
        found.append([loss.detach(), correct.double(), *torch.autograd.grad(3 * loss, leaves)])
    assert_close(found[0], found[1])


def test_linear_cross_entropy_without_labels() -> None:
    hidden, weight = normal(0, 2, 6).requires_grad_(), normal(1, 20, 6)
    loss, _ = linear_cross_entropy(hidden, weight, torch.tensor([-100, -100]))
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()  # pyright: ignore[reportOptionalMemberAccess]
    loss, correct = linear_cross_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.long))
    assert loss == 0
    assert correct.shape == (0,)


def test_the_scale_of_a_loss_is_not_rounded_to_the_dtype_of_the_hidden_states() -> None:
    """In bfloat16 one over so many labels is up to 0.4 % off, the same for every element of the gradient."""
    hidden, weight = (normal(i, n, 64, dtype=torch.bfloat16) for i, n in enumerate((300, 50)))
    labels = torch.arange(300) % 50

    def gradient(scale: float) -> Tensor:
        leaf = hidden.clone().requires_grad_()
        loss, _ = linear_cross_entropy(leaf, weight, labels, chunk=128)
        return torch.autograd.grad(loss * torch.tensor(scale), leaf)[0].double()

    whole = gradient(1.0)
    for scale in (1 / 12345, 1 / 1003, 1 / 771):
        exact, got = whole * scale, gradient(scale)
        assert ((got - exact).abs() <= 2**-8 * exact.abs()).all()  # half a unit in the last place of eight digits
        assert (got == exact.bfloat16()).float().mean() > 0.999  # float32 may fall on the other side of a middle


def test_validation_computes_no_gradients() -> None:
    """Nor does a frozen head: only the products that somebody asked for."""
    hidden, weight, labels = normal(0, 11, 6), normal(1, 20, 6).requires_grad_(), torch.arange(11)
    product = 2 * 11 * 6 * 20
    for grad, leaf, products in ((False, hidden, 1), (True, hidden, 2), (True, hidden.clone().requires_grad_(), 3)):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            linear_cross_entropy(leaf, weight, labels)
        assert counter.get_total_flops() == products * product


# Largest difference from float64, relative to the largest value, of outputs and of gradients.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@every_op
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_lower_precision(op: Op, dtype: torch.dtype) -> None:
    lengths = [90, 1, 200]
    bounds = Bounds(lengths)
    exact = (op.stream(sum(lengths), 3), op.shared, op.state(len(lengths), 7))
    rounded = [[t.to(dtype) for t in group] for group in exact]
    back = [[t.double() for t in group] for group in rounded]
    got, wanted = (op.run("torch", a, b, c, bounds) for a, b, c in (rounded, back))
    for a, b in zip(got[0] + got[1], wanted[0] + wanted[1]):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max(), (op.name, a.shape)


def test_the_choice_of_forms(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(1)
    dispatch.configure(ssd="reference")
    assert dispatch.choose("ssd", x) == "reference"
    dispatch.configure(**vars(KernelConfig()))
    with dispatch.use(ssd="torch", conv1d="reference"):
        assert (dispatch.choose("ssd", x), dispatch.choose("conv1d", x)) == ("torch", "reference")
    dispatch.reset_log()
    with caplog.at_level("INFO", "timeviper"):
        assert [dispatch.choose("attention", x) for _ in range(3)] == ["torch"] * 3
    assert [r.message for r in caplog.records] == [
        "kernel.attention: the torch form runs, because flash_attn needs a CUDA device, this is cpu"
    ]


def test_a_vendor_that_cannot_run_says_why() -> None:
    with dispatch.use(ssd="vendor"), pytest.raises(RuntimeError, match=r"needs a CUDA device.*pip install .*mamba-ssm"):
        dispatch.choose("ssd", torch.zeros(1))
    with dispatch.use(cross_entropy="vendor"), pytest.raises(RuntimeError, match="no vendor kernel is known"):
        dispatch.choose("cross_entropy", torch.zeros(1))
    assert "computes in float16, bfloat16" in dispatch.obstacle("attention", torch.device("cuda"), torch.float32)
    with pytest.raises(ValueError, match=r"kernel\.ssd: 'fast' is none of"), dispatch.use(ssd="fast"):
        pass
    with pytest.raises(ValueError, match="there are ssd, conv1d"), dispatch.use(scan="torch"):
        pass


def test_the_report_names_every_operation() -> None:
    with dispatch.use(norm="reference"):
        rows = {row.op: row for row in dispatch.report("cpu")}
    assert set(rows) == set(KernelConfig.__dataclass_fields__)
    assert rows["norm"].used == "reference"
    assert rows["ssd"].used == "torch"
    assert "CUDA" in rows["ssd"].why
    assert "mamba-ssm" in rows["ssd"].vendors[0][1]
    assert [v.name for v, _ in rows["attention"].vendors] == ["flash_attn", "torch.nn.attention"]
