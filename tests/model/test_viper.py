"""The model as a whole: splice, packs, frozen parts, text only, and the tag objective of stage 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_helpers import GUIDED, HYBRID, PUBLISHED
from viper_helpers import TOWER, T, config, make_model, sample, samples

from timeviper.config import TransVStage
from timeviper.config.shape import PackShape, segment_shapes
from timeviper.kernels.bounds import Bounds
from timeviper.model.tags import SHARPNESS, TagModel
from timeviper.model.viper import TimeViper, part_of
from timeviper.pack import IGNORE, Kind, Pack


def test_vision_tokens_stand_where_the_pack_says() -> None:
    model = make_model()
    pack = Pack.join(samples())
    x = model.embed(pack)
    vision = model.encode(pack.frames)
    assert vision.shape == (pack.num_frames, model.tokens_per_frame, HYBRID.width)
    placed = iter(vision.flatten(0, 1))
    for token, kind, got in zip(pack.ids, pack.kind, x):
        expected = next(placed) if kind == Kind.VISION else model.decoder.embeddings.weight[token]
        torch.testing.assert_close(got, expected)
    assert next(placed, None) is None


def test_wrong_number_of_vision_positions() -> None:
    pack = replace(sample("2c8v3i2a", 2), frames=torch.zeros(3, 3, 16, 16, dtype=torch.uint8), frame_counts=[3])
    with pytest.raises(ValueError, match="8 vision positions, but 3 frames of 4 tokens make 12"):
        make_model()(pack)


@pytest.mark.parametrize("stages", [{}, GUIDED, PUBLISHED], ids=["off", "guided", "published"])
def test_a_pack_equals_its_sequences(stages) -> None:
    """Losses, logits and every gradient of a pack of k sequences are those of k single runs."""
    model = make_model(config(stages))
    parts, joined = samples(), Pack.join(samples())
    together = model(joined, last_logits=True)
    together.loss_sum.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    alone = [model(p, last_logits=True) for p in parts]
    torch.stack([o.loss_sum for o in alone]).sum().backward()
    torch.testing.assert_close(together.loss_sum, torch.stack([o.loss_sum for o in alone]).sum())
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in alone]))
    assert torch.equal(together.correct, torch.cat([o.correct for o in alone]))
    assert together.num_labels == sum(o.num_labels for o in alone) == len(together.correct) == 12
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, msg=lambda m, name=name: f"{name}: {m}")
        assert gradients[name].abs().sum() > 0, f"{name} receives no gradient"


def shared() -> tuple[Pack, Pack]:
    """Three turns as sequences that go on with the frames of the one before, among other samples; and with copies."""
    first, second, third = (sample(p, n) for p, n in (("2c8v3i2a", 2), ("2c8v3i2a4i1a", 2), ("2c8v3i2a4v1i3a", 3)))
    frames = third.frames
    copies = [replace(part, frames=frames[: part.frame_counts[0]]) for part in (first, second, third)]
    once = [copies[0], replace(second, frames=frames[:0], goes_on=[True])]
    once.append(replace(third, frames=frames[2:], goes_on=[True]))
    ahead, behind = samples()[0], samples()[3]
    return Pack.join([ahead, *once, behind]), Pack.join([ahead, *copies, behind])


def test_frames_that_turns_share_are_encoded_once_and_count_for_each() -> None:
    model, (once, copies) = make_model(), shared()
    assert (len(once.frames), len(copies.frames), once.num_frames, copies.num_frames) == (9, 13, 13, 13)
    runs = []
    for pack in (once, copies):
        model.zero_grad()
        out = model(pack, last_logits=True)
        out.loss_sum.backward()
        runs.append([out.loss_sum, out.logits])
        runs[-1] += [p.grad.clone() for p in model.parameters()]
    for a, b in zip(*runs):
        torch.testing.assert_close(a, b)
    assert PackShape.of(once) == replace(PackShape.of(copies), stored=4)


def test_shared_frames_stand_among_stored_ones() -> None:
    """Sequences with features, and without, each going on or not."""
    once, _ = shared()
    stored = [False, True, True, True, False]
    features = {"main": torch.zeros(3, T, 16)}
    frames = torch.cat([once.frames[:3], once.frames[6:]])
    mixed = replace(once, frames=frames, features=features, from_features=stored)
    order = mixed.frame_order
    assert order is not None
    assert order.tolist() == [0, 1, 2, *[6, 7], *[6, 7], *[6, 7, 8], 3, 4, 5]


def test_the_planned_shapes_know_groups() -> None:
    """A later turn's media are counted by themselves, in the model and in the plan."""
    cfg = config({"early": TransVStage(1, 0.5), "late": TransVStage(5, 0.1)})
    pack = Pack.join([sample("2c12v3i4a4v2i1a", 4), *samples()])
    out = make_model(cfg)(pack).decoder
    assert out is not None
    shape = PackShape.of(pack)
    assert shape.groups[0] == (3, 1)
    shapes = segment_shapes(cfg, shape)
    assert {s.segment.name: list(s.vision) for s in shapes[1:]} == out.kept
    assert out.kept["late"][0] == 1 + 1
    assert PackShape.of(Pack.join(samples())).groups == ()


def test_labels_and_where_they_stood() -> None:
    """Against logits of all positions: the labels, although TransV has shortened the stream."""
    model = make_model()
    pack = Pack.join(samples())
    out = model(pack)
    assert torch.equal(out.label_index, torch.nonzero(pack.labels != IGNORE).squeeze(1))
    assert out.decoder.hidden.shape[0] < len(pack.ids)
    place = {int(i): n for n, i in enumerate(out.decoder.index)}
    logits = model.decoder.project(out.decoder.hidden)[[place[int(i)] for i in out.label_index]]
    labels = pack.labels[out.label_index]
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(out.loss_sum, expected, check_dtype=False)
    assert torch.equal(out.correct, logits.argmax(1) == labels)


def test_last_logits_are_of_the_last_token() -> None:
    model = make_model()
    logits = model(Pack.join(samples()), last_logits=True).logits
    assert logits.shape == (4, HYBRID.vocab_size)
    text = samples()[1]
    torch.testing.assert_close(logits[1], model.decoder.logits(text.ids)[-1])


@pytest.mark.parametrize("kind", [TimeViper, TagModel])
@pytest.mark.parametrize("pack", [sample("3c2a", 0), Pack.blank(16)], ids=["text", "blank"])
def test_without_frames_every_parameter_still_takes_part(kind: type, pack: Pack) -> None:
    """A rank whose pack has no frames must join the other ranks in reducing each gradient."""
    model = make_model(kind=kind)
    model(pack).loss_sum.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_two_towers_lie_side_by_side() -> None:
    second = replace(TOWER, width=24, tokens=2, patch_size=8)
    model = make_model(config(main=TOWER, other=second))
    assert model.tokens_per_frame == 6
    frames = sample("1c12v1i1a", 2).frames
    both = model.encode(frames)
    for name, piece in zip(("main", "other"), both.split([4, 2], dim=1)):
        torch.testing.assert_close(piece, model.projectors[name](model.towers[name](frames, piece.shape[1])))
    assert model(sample("1c12v2i2a", 2)).num_labels == 2


def test_frozen_parts_stay_as_they_are() -> None:
    model = make_model()
    model.freeze(["projector", "transv"])
    model.train()
    assert model.training
    assert model.projectors.training
    assert not model.towers.training
    assert not any(block.training for block in model.decoder.blocks)
    assert all(stage.training for stage in model.decoder.transv.values())
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(Pack.join(samples())).loss_sum.backward()
    optimizer.step()
    changed = {part_of(n) for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"projector", "transv"}
    assert all(p.grad is None for n, p in model.named_parameters() if part_of(n) in ("tower", "decoder"))


def test_a_model_frozen_as_a_whole_takes_both_modes() -> None:
    model = make_model().requires_grad_(False)
    assert not any(module.training for module in model.eval().modules())
    assert not any(module.training for module in model.train().modules())


def test_freeze_names_what_does_not_exist() -> None:
    model = make_model(config({}))
    with pytest.raises(ValueError, match="no part of the model; allowed: tower, projector, decoder, transv"):
        model.freeze(["encoder"])
    with pytest.warns(UserWarning, match="transv, but this model has none"):
        model.freeze(["projector", "transv"])
    with pytest.raises(ValueError, match="belongs to no part"):
        part_of("language_model.weight")


def test_tags_against_a_loop() -> None:
    """Of each sequence: every frame's soft maximum over tokens, the mean over frames, the words in any order; the
    classes are the words of the pack's captions."""
    model = make_model(kind=TagModel)
    packs = [p for p in samples() if p.num_frames]
    pack = Pack.join(packs)
    out = model(pack)
    total, correct = torch.zeros((), dtype=torch.float64), []
    words = pack.labels[pack.labels != IGNORE].unique()
    assert len(words) < len(model.decoder.embeddings.weight), "some words are in no caption"
    for one in packs:
        tokens = model.projectors["main"](model.towers["main"](one.frames, T)) @ model.decoder.embeddings.weight.T
        says = ((SHARPNESS * tokens).exp().mean(dim=1).log()).mean(dim=0)
        says = says - says[words].logsumexp(0)
        says[[w for w in range(len(says)) if w not in words]] = -torch.inf
        labels = one.labels[one.labels != IGNORE]
        total -= says[labels].sum()
        correct += [int((says > says[w]).sum()) < len(labels) for w in labels]
    torch.testing.assert_close(out.loss_sum, total, check_dtype=False)
    assert out.correct.tolist() == correct
    assert torch.equal(out.label_index, torch.nonzero(pack.labels != IGNORE).squeeze(1))
    sequence = Bounds(pack.lengths).seq_idx[out.label_index]
    assert torch.bincount(sequence).tolist() == [p.num_labels for p in packs]


def test_words_that_no_caption_has_keep_their_embeddings() -> None:
    model = make_model(kind=TagModel)
    pack = Pack.join([p for p in samples() if p.num_frames])
    model(pack).loss_sum.backward()
    moved = model.decoder.embeddings.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().squeeze(1).tolist() == pack.labels[pack.labels != IGNORE].unique().tolist()


def test_a_tower_learns_colours_from_words() -> None:
    """Three words for red, green and blue squares on grey: known within sixty steps."""
    torch.manual_seed(0)
    model = TagModel(config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    g = torch.Generator().manual_seed(0)
    right = torch.zeros(())
    for _ in range(60):
        colour = torch.randint(3, (16,), generator=g)
        corner = torch.randint(10, (16, 2), generator=g)
        frames = torch.full((16, 3, 16, 16), 60, dtype=torch.uint8)
        for frame, c, (y, x) in zip(frames, colour, corner):
            frame[int(c), y : y + 6, x : x + 6] = 220
        labels = torch.stack([torch.full((16,), IGNORE), 7 + colour, torch.full((16,), IGNORE)], dim=1)
        pack = Pack(
            ids=torch.ones(48, dtype=torch.int64),
            labels=labels.flatten(),
            kind=torch.tensor([2, 2, 3], dtype=torch.uint8).repeat(16),
            lengths=[3] * 16,
            frames=frames,
            frame_times=torch.zeros(16, dtype=torch.float64),
            frame_counts=[1] * 16,
        )
        out = model(pack)
        (out.loss_sum / out.num_labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        right = out.correct.float().mean()
    assert right >= 0.9
