"""Writing: prefill the prompts, then one token a sequence and step, at constant cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from timeviper.errors import ConfigError, Problem
from timeviper.inference.prefill import Prefilled, prefill, prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.viper import TimeViper
from timeviper.model.vision.tower import FRAMES_PER_CHUNK
from timeviper.pack import Kind, Pack, text_runs, vision_groups

ENDED = -1  # what `on_token` is shown for a sequence that has stopped

OnToken = Callable[[list[int]], None]


def generate(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    on_token: OnToken | None = None,
    chunk: int | None = None,
) -> list[Tensor]:
    """Continue text prompts (int64 `[n]` each, of any lengths) together; returns the new ids of each.

    temperature 0: the most likely token; else sampled from the smallest set of tokens that holds `top_p` of
    the probability, with `generator` (on the decoder's device). A stop id ends its sequence and is not
    returned. on_token: called at every step with one id a sequence, `ENDED` for those that have stopped.
    chunk: prefill in pieces of that many tokens, which bounds the memory of long prompts.
    Raises ValueError for an empty prompt, an id outside the vocabulary, or a prompt longer than the context.
    """
    _check_prompts(decoder, prompts)
    device = decoder.embeddings.weight.device
    prompts = [ids.to(device) for ids in prompts]
    if not prompts or max_new_tokens == 0:
        return [ids[:0] for ids in prompts]
    with torch.inference_mode():
        if chunk is None:
            start = prefill(decoder, decoder.embed(torch.cat(prompts)), Bounds(map(len, prompts), device))
        else:
            start = Prefilled.join([_prefill_text(decoder, ids, chunk, max_new_tokens) for ids in prompts])
    return write(
        decoder,
        start,
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=stop_ids,
        generator=generator,
        on_token=on_token,
    )


def generate_pack(
    model: TimeViper,
    pack: Pack,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    on_token: OnToken | None = None,
    kept: dict[str, list[int]] | None = None,
) -> list[Tensor]:
    """Answer every prompt of a pack with its frames; returns the new ids of each, as `generate` does.

    kept: filled with the vision tokens left after each transfer stage.
    """
    start = prefill_pack(model, pack)
    if kept is not None:
        kept.update(start.kept)
    return write(
        model.decoder,
        start,
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=stop_ids,
        generator=generator,
        on_token=on_token,
    )


@torch.inference_mode()
def prefill_pack(model: TimeViper, pack: Pack) -> Prefilled:
    """Every prompt of a pack, whole, with its frames."""
    x = model.embed(pack)
    return prefill(model.decoder, x, Bounds(pack.lengths, x.device), pack.kind)


Part = Tensor | Mapping[str, Tensor]  # of the frames: uint8 `[f, 3, H, W]`, or their features `[f, T, C]` by tower


@torch.inference_mode()
def read_prompt(
    model: TimeViper,
    ids: Tensor,
    kind: Tensor,
    seconds: Tensor,
    parts: Callable[[int], Iterable[Part]],
    *,
    tokens_per_piece: int,
    max_new_tokens: int = 0,
) -> Prefilled:
    """The decoder's state after one prompt about frames: read whole, or in pieces as frames are asked for.

    ids int64 and kind uint8 `[n]` as in a pack, on any device; seconds `[F]` of each frame, on the host; parts: all
    frames, so many at a time. A prompt of more than `tokens_per_piece` tokens goes through the decoder so many at a
    time (0: all go whole). Raises ValueError as `embed_frames` and `prefill_chunks` do.
    """
    device, frames = model.decoder.embeddings.weight.device, len(seconds)
    tokens, vision = len(ids), frames * model.tokens_per_frame
    whole = tokens_per_piece == 0 or tokens <= tokens_per_piece
    count = max(frames, 1) if whole else frames_at_once(tokens_per_piece, model.tokens_per_frame)
    embedded = embed_frames(model, ids.to(device), kind.to(device), parts(count), seconds)
    if whole:
        x = torch.cat([x for x, _ in embedded])
        return prefill(model.decoder, x, Bounds([tokens], device), kind.to(device))
    groups = vision_groups(text_runs(kind.cpu(), [tokens])[0], vision)
    pieces = in_pieces(embedded, tokens_per_piece)
    return prefill_chunks(model.decoder, pieces, groups, tokens - vision + max_new_tokens)


def frames_at_once(tokens_per_piece: int, tokens_per_frame: int) -> int:
    """Frames of about a piece: whole chunks of the tower's."""
    return max(tokens_per_piece // (tokens_per_frame * FRAMES_PER_CHUNK), 1) * FRAMES_PER_CHUNK


def embed_frames(
    model: TimeViper, ids: Tensor, kind: Tensor, parts: Iterable[Part], seconds: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The embedded prompt up to the last vision token of each part of the frames, then what follows them: an hour of
    video is never in memory.

    ids and kind `[n]` as in a pack, with 0 at vision positions; seconds `[F]` of each frame, on the host.
    Raises ValueError when the frames do not fill the prompt's vision positions.
    """
    places = torch.nonzero(kind == Kind.VISION).squeeze(1).tolist()
    start = done = 0
    for part in parts:
        vision = _encode(model, part, ids.device)  # [f, T, D]
        first = done // model.tokens_per_frame
        vision = model.timed(vision, seconds[first : first + len(vision)]).flatten(0, 1)
        done += len(vision)
        if len(vision) == 0 or done > len(places):
            continue
        piece = slice(start, places[done - 1] + 1)
        start = piece.stop
        where = torch.nonzero(kind[piece] == Kind.VISION).squeeze(1)
        x = model.decoder.embed(ids[piece])
        yield x.index_copy(0, where, vision.to(x.dtype)), kind[piece]
    if done != len(places):
        raise ValueError(
            f"the prompt has {len(places)} vision positions, but the frames made {done} tokens "
            f"({model.tokens_per_frame} a frame)"
        )
    if start < len(ids):
        yield model.decoder.embed(ids[start:]), kind[start:]


def _encode(model: TimeViper, part: Part, device: torch.device) -> Tensor:
    if isinstance(part, Tensor):
        return model.encode(part.to(device, non_blocking=True))
    none = torch.zeros(0, 3, 1, 1, dtype=torch.uint8, device=device)
    return model.encode(none, {tower: f.to(device, non_blocking=True) for tower, f in part.items()})


def in_pieces(parts: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same embedded tokens and kinds, `size` of them at a time (the last time fewer)."""
    held: list[tuple[Tensor, Tensor]] = []
    room = size
    for x, kind in parts:
        while len(x):
            held.append((x[:room], kind[:room]))
            taken = len(held[-1][1])
            x, kind, room = x[taken:], kind[taken:], room - taken
            if room == 0:
                yield _joined(held)
                held, room = [], size
    if held:
        yield _joined(held)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return parts[0] if len(parts) == 1 else (torch.cat([x for x, _ in parts]), torch.cat([kind for _, kind in parts]))


@torch.inference_mode()
def write(
    decoder: Decoder,
    start: Prefilled,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    on_token: OnToken | None = None,
) -> list[Tensor]:
    """Continue prefilled prompts (the general form: see `generate`). Uses up the state of `start`.

    Raises ValueError, before it writes, where prompt and answer together are longer than the context.
    """
    check_sampling(temperature, top_p, max_new_tokens)
    state, hidden = start.state, start.hidden
    for i, n in enumerate(state.seen):
        if n + max_new_tokens > decoder.cfg.max_tokens:
            raise ValueError(
                f"prompt {i} has {n:,} tokens and {max_new_tokens:,} are to be written: more than "
                f"model.decoder.max_tokens = {decoder.cfg.max_tokens:,}"
            )
    device, S = hidden.device, state.num_sequences
    written: list[list[int]] = [[] for _ in range(S)]
    alive = list(range(S))
    for step in range(max_new_tokens):
        logits = decoder.project(hidden)
        if step == 0 and not bool(torch.isfinite(logits).all()):
            raise ValueError("the logits after the prompt are not finite: the weights or the frames hold NaN")
        chosen = sample(logits, temperature, top_p, generator)
        ids = chosen.tolist()
        going = [i for i, token in enumerate(ids) if token not in stop_ids]
        shown = [ENDED] * S
        for i in going:
            written[alive[i]].append(ids[i])
            shown[alive[i]] = ids[i]
        if on_token is not None and going:
            on_token(shown)
        if not going or step == max_new_tokens - 1:
            break
        if len(going) < len(alive):
            state, chosen = state.select(going), chosen[going]
            alive = [alive[i] for i in going]
        hidden = decoder(decoder.embed(chosen), Bounds([1] * len(alive), device), state=state).hidden
    return [torch.tensor(ids, dtype=torch.int64, device=device) for ids in written]


def sample(logits: Tensor, temperature: float, top_p: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Choose one id `[S]` from logits `[S, V]`."""
    if temperature == 0:
        return logits.argmax(-1)
    probs, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    before = probs.cumsum(-1) - probs  # what the more likely tokens hold: less than top_p for those in the set
    probs = probs.masked_fill(before >= top_p, 0.0)
    return order.gather(1, torch.multinomial(probs, 1, generator=generator)).squeeze(1)


def _prefill_text(decoder: Decoder, ids: Tensor, chunk: int, spare: int) -> Prefilled:
    pieces = ((decoder.embed(p), torch.zeros_like(p, dtype=torch.uint8)) for p in ids.split(chunk))
    return prefill_chunks(decoder, pieces, 0, len(ids) + spare)


def check_sampling(temperature: float, top_p: float, max_new_tokens: int) -> None:
    """Raises ConfigError with all that is not allowed."""
    ranges = (
        ("temperature", temperature, 0 <= temperature < inf, "must be 0 (greedy) or above."),
        ("top_p", top_p, 0 < top_p <= 1, "must be above 0 and at most 1 (1: every token)."),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 0, "must be 0 or more."),
    )
    if wrong := [Problem(name, value, says) for name, value, holds, says in ranges if not holds]:
        raise ConfigError("how to write", wrong)


def _check_prompts(decoder: Decoder, prompts: Sequence[Tensor]) -> None:
    for i, ids in enumerate(prompts):
        if ids.ndim != 1 or ids.dtype != torch.int64 or len(ids) == 0:
            raise ValueError(f"prompt {i} must be int64 [n] with n of 1 or more, got {ids.dtype} {list(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= decoder.cfg.vocab_size:
            raise ValueError(
                f"prompt {i} has ids {int(ids.min())} to {int(ids.max())}; the vocabulary has "
                f"{decoder.cfg.vocab_size} (0 to {decoder.cfg.vocab_size - 1}): is it the right tokenizer?"
            )
