"""TransV: which tokens stay, who receives, and what must not change."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from model_helpers import HYBRID, PLAIN, SCHEDULES, Prompt, kinds, logits, make_decoder, make_prompts, run
from torch.testing import assert_close

from timeviper.config import TransVStage
from timeviper.config.shape import kept_counts
from timeviper.inference.prefill import prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.ranking import Rows, attention_scores, last_prompt_token
from timeviper.model.selection import select_ranked, select_uniform
from timeviper.pack import Kind, text_runs, vision_groups

CLOSE = dict(rtol=0, atol=1e-9)
CPU = torch.device("cpu")


def test_kept_counts_are_fractions_of_the_original() -> None:
    assert kept_counts(0.5, [10, 11, 1, 0, 2], [10, 11, 1, 0, 2]) == [5, 5, 1, 0, 1]
    assert kept_counts(0.1, [160, 16, 5], [80, 8, 2]) == [16, 1, 1]
    assert kept_counts(0.29, [100], [50]) == [29]  # 0.29 * 100 = 28.999...
    assert kept_counts(1.0, [7], [7]) == [7]


def test_uniform_selection_is_linspace_rounded_down() -> None:
    mask = select_uniform([10, 3, 0, 1, 160_000], [5, 1, 0, 1, 16_000], CPU)
    parts = mask.split([10, 3, 0, 1, 160_000])
    assert parts[0].nonzero().flatten().tolist() == [0, 2, 4, 6, 9]
    assert parts[1].tolist() == [True, False, False]
    assert parts[3].tolist() == [True]
    exact = [i * 159_999 // 15_999 for i in range(16_000)]
    assert parts[4].nonzero().flatten().tolist() == exact


def test_ranked_selection_takes_the_best_of_each_sequence() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 9.0, 8.0, 7.0, 0.2, 0.2, 0.2])
    mask = select_ranked(scores, [3, 3, 0, 3], [2, 1, 0, 2])
    assert mask.tolist() == [False, True, True, True, False, False, True, True, False]


def test_the_last_prompt_token_of_the_last_turn_ranks() -> None:
    kind = torch.cat([kinds("2c3v2i2a"), kinds("1c1v2i3a4i1a"), kinds("3c2v2i")])
    assert last_prompt_token(kind, Bounds([9, 12, 7])).tolist() == [6, 9 + 10, 27]


def test_scores_are_the_mean_attention_of_that_token() -> None:
    """Against softmax over a single sequence, with later tokens left out."""
    torch.manual_seed(0)
    logits, bounds = torch.randn(11, 3, dtype=torch.float64), Bounds([4, 7])
    rows = Rows(torch.tensor([[3], [8]]), torch.ones(2, 1))
    scores = attention_scores(logits[:, None], rows, bounds)
    assert_close(scores[:4], logits[:4].softmax(0).mean(1), **CLOSE)
    assert_close(scores[4:9], logits[4:9].softmax(0).mean(1), **CLOSE)
    assert torch.equal(scores[9:], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
def test_ranking_equals_the_attention_of_the_block(cfg) -> None:
    """A block that is asked to rank gives the softmax that its attention would use."""
    layer = cfg.layout.index("*")
    decoder = make_decoder(cfg, {"only": TransVStage(layer, 0.4, "attention")})
    prompt = make_prompts(["2c20v5i"])[0]
    first = decoder.segments[0]
    x = decoder.run(first, prompt.x, Bounds([27]), None)
    assert list(first.blocks) == list(range(layer))
    mixer, norm = decoder.blocks[layer].mixer, decoder.blocks[layer].norm
    h = norm(x)
    q, k = mixer.heads(mixer.q_proj(h)), mixer.heads(mixer.k_proj(h))
    if cfg.family != "nemotron_h":
        from timeviper.model.attention import rotary, rotate

        rope = rotary(torch.arange(27), cfg.head_dim, cfg.rope_theta)
        q, k = rotate(q, rope), rotate(k, rope)
    k = k.repeat_interleave(cfg.heads // cfg.kv_heads, 1)
    weights = (torch.einsum("hp,lhp->lh", q[-1], k) / math.sqrt(cfg.head_dim)).softmax(0).mean(1)
    best = (weights[2:22].topk(8).indices + 2).sort().values.tolist()
    assert run(decoder, [prompt]).index.tolist() == [0, 1, *best, *range(22, 27)]


@pytest.mark.parametrize("schedule", ["uniform", "guided", "published", "rope"])
def test_a_closed_gate_equals_pure_drop(schedule: str) -> None:
    cfg, stages = SCHEDULES[schedule]
    decoder, prompts = make_decoder(cfg, stages), make_prompts()
    with decoder.transfer(False):
        dropped = run(decoder, prompts)
    open_gate = run(decoder, prompts)
    assert torch.equal(open_gate.index, dropped.index) or schedule in ("published", "rope")
    assert not torch.equal(open_gate.hidden, dropped.hidden)
    for transfer in decoder.transv.values():
        transfer.alpha.data.zero_()
    closed = run(decoder, prompts)
    assert torch.equal(closed.index, dropped.index)
    assert torch.equal(closed.hidden, dropped.hidden)
    without = {name: replace(stage, transfer=False) for name, stage in stages.items()}
    lean = Decoder(cfg, replace(decoder.transv_cfg, stages=without)).double()
    lean.load_state_dict({k: v for k, v in decoder.state_dict().items() if not k.startswith("transv.")})
    assert not lean.transv
    assert torch.equal(run(lean, prompts).hidden, dropped.hidden)


def test_keeping_everything_is_the_identity() -> None:
    stages = {"a": TransVStage(1, 1.0), "b": TransVStage(5, 1.0, "attention")}
    decoder, prompts = make_decoder(HYBRID, stages), make_prompts()
    out = run(decoder, prompts)
    assert torch.equal(out.index, torch.arange(len(out.index)))
    assert not decoder.transv
    assert out.kept == {"a": [p.vision for p in prompts], "b": [p.vision for p in prompts]}
    assert torch.equal(out.hidden, run(make_decoder(HYBRID), prompts).hidden)


def test_fractions_count_from_the_original_tokens() -> None:
    decoder = make_decoder(*SCHEDULES["published"])
    prompts = make_prompts(["2c40v3i", "4c", "1c10v2i5v2i"])
    out = run(decoder, prompts)
    assert out.kept == {"early": [20, 0, 7], "late": [8, 0, 3]}
    assert list(out.bounds.lengths) == [2 + 8 + 3, 4, 1 + 3 + 4]
    assert torch.equal(out.index, out.index.sort().values)


# Several turns with media of their own; two media in one turn; answers before any medium and behind all.
TURNS = ("2c9v4i3a7v3i2a5v2i1a", "1c6v1i4v2i3a1v1i2a3i2a11v2i2a", "3c2a8v2i1a", "5c", "1c12v2i4a2v")
LATE = {"early": TransVStage(1, 0.5), "late": TransVStage(5, 0.2)}


def test_answers_part_vision_tokens_into_groups() -> None:
    found = [vision_groups(text_runs(kind, [len(kind)])[0], int((kind == Kind.VISION).sum())) for kind in kinds_of()]
    assert found == [[9, 7, 5], [10, 1, 11], [8], [0], [12, 2]]


def kinds_of() -> list[torch.Tensor]:
    return [p.kind for p in make_prompts(TURNS)]


@pytest.mark.parametrize("options", [{}, dict(keys="all"), dict(queries="instruction+answer")])
@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
def test_what_comes_later_changes_nothing_before_it(cfg, options: dict) -> None:
    """Hidden states up to every answer: of the whole, of that much of it alone, and with other media behind it."""
    stages = LATE if cfg is HYBRID else {"early": TransVStage(1, 0.5), "late": TransVStage(4, 0.2)}
    decoder = make_decoder(cfg, stages, **options)
    for prompt in make_prompts(TURNS):
        whole = run(decoder, [prompt])
        answers = (prompt.kind == Kind.ANSWER).int()
        for end in [*((answers.diff() == -1).nonzero().flatten() + 1).tolist(), len(answers)]:
            alone = run(decoder, [Prompt(prompt.x[:end], prompt.kind[:end])])
            before = int((whole.index < end).sum())
            assert torch.equal(whole.index[:before], alone.index)
            assert_close(whole.hidden[:before], alone.hidden, **CLOSE)
            other = prompt.x.clone()
            other[end:] = torch.randn_like(other[end:])
            assert_close(run(decoder, [Prompt(other, prompt.kind)]).hidden[:before], alone.hidden, **CLOSE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_in_packs_and_in_pieces_equal_single_runs(schedule: str) -> None:
    decoder, prompts = make_decoder(*SCHEDULES[schedule]), make_prompts(TURNS)
    whole = run(decoder, prompts)
    counts = zip(*whole.kept.values()) if whole.kept else [()] * len(prompts)
    for prompt, hidden, kept in zip(prompts, whole.hidden.split(list(whole.bounds.lengths)), counts):
        single = run(decoder, [prompt])
        assert_close(hidden, single.hidden, **CLOSE)
        assert tuple(n for (n,) in single.kept.values()) == kept
        groups = vision_groups(text_runs(prompt.kind, [len(prompt.kind)])[0], prompt.vision)
        for size in (1, 5, 1000):
            chunks = list(zip(prompt.x.split(size), prompt.kind.split(size)))
            pieces = prefill_chunks(decoder, chunks, groups)
            assert pieces.kept == single.kept
            assert_close(pieces.hidden, single.hidden[-1:].detach(), **CLOSE)
            if len(groups) > 1:
                with pytest.raises(ValueError, match=r"parted where answers part them"):
                    prefill_chunks(decoder, chunks, prompt.vision)


def test_each_group_keeps_its_own_share() -> None:
    kept = run(make_decoder(HYBRID, LATE), make_prompts(TURNS)).kept
    assert kept == {"early": [4 + 3 + 2, 5 + 1 + 5, 4, 0, 6 + 1], "late": [1 + 1 + 1, 2 + 1 + 2, 1, 0, 2 + 1]}


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("queries", "receivers"),
    [("instruction", [7, 8, 13, 14]), ("instruction+answer", [7, 8, 9, 10, 13, 14, 15])],
)
def test_only_instructions_receive(queries: str, receivers: list[int]) -> None:
    """Stage before the first block: what the stream is after the transfer is seen directly."""
    cfg = replace(HYBRID, layout="-*")
    decoder = make_decoder(cfg, {"a": TransVStage(0, 0.5)}, queries=queries)
    prompt = make_prompts(["2c5v2i2a2v2i1a"])[0]
    streams: list[torch.Tensor] = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    out = run(decoder, [prompt])
    with decoder.transfer(False):
        run(decoder, [prompt])
    assert [int(out.index[i]) for i in changed(*streams)] == receivers


def test_a_later_dropped_token_reaches_no_earlier_query() -> None:
    cfg = replace(HYBRID, layout="-*")
    for keys in ("dropped", "all"):
        decoder = make_decoder(cfg, {"a": TransVStage(0, 0.5)}, keys=keys)
        prompt = make_prompts(["1c6v2i6v2i"])[0]
        streams: list[torch.Tensor] = []
        decoder.blocks[0].register_forward_pre_hook(lambda _, args, s=streams: s.append(args[0]))
        out = run(decoder, [prompt])
        lost = sorted(set(range(9, 15)) - set(out.index.tolist()))
        other = Prompt(prompt.x.clone(), prompt.kind)
        other.x[lost] += 1
        run(decoder, [other])
        assert [int(out.index[i]) for i in changed(*streams)] == [15, 16]


def test_keys_can_be_all_vision_tokens() -> None:
    cfg = replace(HYBRID, layout="-*")
    prompt = make_prompts(["1c6v2i"])[0]
    for keys, count in (("dropped", 3), ("all", 6)):
        decoder = make_decoder(cfg, {"a": TransVStage(0, 0.5)}, keys=keys)
        seen: list[int] = []
        decoder.transv["a"].register_forward_pre_hook(lambda _, args, s=seen: s.append(len(args[1])))
        run(decoder, [prompt])
        assert seen == [count]


def test_the_prenorm_can_be_left_out() -> None:
    plain = make_decoder(HYBRID, SCHEDULES["uniform"][1], prenorm=False)
    assert not any("norm" in name for name, _ in plain.transv.named_parameters())
    assert torch.isfinite(run(plain, make_prompts()).hidden).all()


def test_no_answer_shapes_the_choice_or_another_token() -> None:
    """Attention-guided: answers may change freely, the tokens kept and everything before stay the same."""
    decoder = make_decoder(*SCHEDULES["guided"])
    prompt = make_prompts(["2c30v4i6a"])[0]
    other = Prompt(prompt.x.clone(), prompt.kind)
    other.x[36:] += torch.randn_like(other.x[36:])
    a, b = run(decoder, [prompt]), run(decoder, [other])
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.hidden[:-6], b.hidden[:-6])
    assert not torch.equal(a.hidden[-6:], b.hidden[-6:])


def test_training_equals_generation() -> None:
    """The prompt's hidden states do not depend on whether its answer stands behind it."""
    for schedule in ("uniform", "guided", "published", "rope"):
        decoder = make_decoder(*SCHEDULES[schedule])
        prompt = make_prompts(["2c30v4i6a"])[0]
        asked = Prompt(prompt.x[:36], prompt.kind[:36])
        answered, alone = run(decoder, [prompt]), run(decoder, [asked])
        assert_close(answered.hidden[: len(alone.hidden)], alone.hidden, **CLOSE)


def test_every_parameter_gets_a_gradient_whatever_the_pack_holds() -> None:
    """Sharded ranks reduce the same parameters together, also where one has only text."""
    decoder = make_decoder(*SCHEDULES["published"])
    for patterns in (["7c"], ["1c1v2i"], ["3c9v"], ["2c9v4i3a", "5c"]):
        decoder.zero_grad(set_to_none=True)
        run(decoder, make_prompts(patterns)).hidden.sum().backward()
        for name, p in decoder.transv.named_parameters():
            assert p.grad is not None, (patterns, name)
            assert torch.isfinite(p.grad).all(), (patterns, name)


def test_the_gate_alone_learns_at_first() -> None:
    decoder, prompts = make_decoder(*SCHEDULES["published"]), make_prompts()
    for transfer in decoder.transv.values():
        transfer.alpha.data.zero_()
    torch.cat(logits(decoder, prompts)).sin().sum().backward()
    for name, p in decoder.transv.named_parameters():
        assert p.grad is not None
        assert bool(p.grad.any()) == name.endswith("alpha"), name


def test_dropped_tokens_learn_through_the_transfer() -> None:
    decoder, prompt = make_decoder(*SCHEDULES["uniform"]), make_prompts(["2c10v3i"])[0]
    x = prompt.x.requires_grad_()
    out = run(decoder, [Prompt(x, prompt.kind)])
    out.hidden[-1].sum().backward()
    lost = sorted(set(range(13)) - set(out.index.tolist()))
    assert x.grad is not None
    assert (x.grad[lost].abs().sum(1) > 0).all()


def test_transfers_start_from_the_nearest_attention() -> None:
    decoder = make_decoder(HYBRID, SCHEDULES["published"][1] | {"end": TransVStage(7, 0.1)})
    decoder.init_transv_from_attention()
    for name, block in (("early", 2), ("late", 5), ("end", 5)):
        transfer, source = decoder.transv[name], decoder.blocks[block]
        assert torch.equal(transfer.norm.weight, source.norm.weight)
        for proj in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert torch.equal(getattr(transfer, proj).weight, getattr(source.mixer, proj).weight)
        assert transfer.alpha.item() == 0.7


def test_counts_may_be_left_to_the_decoder() -> None:
    decoder, prompts = make_decoder(*SCHEDULES["published"]), make_prompts()
    x, kind = (torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "kind"))
    out = decoder(x, Bounds(len(p.kind) for p in prompts), kind)
    assert torch.equal(out.hidden, run(decoder, prompts).hidden)


def test_kind_values_are_those_of_the_pack() -> None:
    assert kinds("1c1v1i1a").tolist() == [Kind.CONTEXT, Kind.VISION, Kind.INSTRUCTION, Kind.ANSWER]


def test_what_the_host_knows_of_the_text() -> None:
    """Runs of text of one kind, each with the vision tokens before it; they stay as they are when those are dropped."""
    found = text_runs(kinds("2c4v3i2a1i5v2i" + "3c" + "1v1i"), [19, 3, 2])
    c, i, a = Kind.CONTEXT, Kind.INSTRUCTION, Kind.ANSWER
    assert found == [[(2, c, 0), (3, i, 4), (2, a, 4), (1, i, 4), (2, i, 9)], [(3, c, 0)], [(1, i, 1)]]
    assert text_runs(kinds(""), []) == []
