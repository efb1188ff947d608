"""One way into transformers' `generate` for all methods.

One stop rule, no checkpoint defaults, own random numbers.

B prompts, T tokens so far, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.decoding.early_end import EarlyEnd
from pipelines.decoding.prefix import prefix_cache
from pipelines.decoding.prompts import Model, Prompts
from shared.errors import UserError

Processor = Callable[[Tensor, Tensor], Tensor]  # (ids (B, T), scores (B, V)) -> scores (B, V)


class Limits(NamedTuple):
    """When an answer ends: at an end token, or after `max_new_tokens`."""

    max_new_tokens: int
    end_ids: tuple[int, ...]


def generate(
    model: Model,
    prompts: Prompts,
    limits: Limits,
    processors: Sequence[Processor] = (),
    *,
    draw: Processor | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    custom: Callable[..., Tensor] | None = None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, the end token left out.

    Greedy over the processed scores (`draw`, a sampler, is the last processor and leaves one
    token), beam search with `num_beams`, or `custom`, transformers' `custom_generate` function,
    which brings its own cache. The image token is never generated: an answer shows no image, and W
    would act on it. It is left out before anything is compared with the likeliest token.

    Raises
    ------
    UserError
        A prompt's scores are NaN, or no token has a finite one; prompt and answer are longer than
        the model's positions.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    lengths = prompts.mask.sum(1)
    longest = int(lengths.argmax())
    check_positions(model, int(lengths[longest]), limits.max_new_tokens, prompts.items[longest])
    config = GenerationConfig(
        max_new_tokens=limits.max_new_tokens,
        eos_token_id=list(limits.end_ids),
        pad_token_id=prompts.pad_token_id,
        do_sample=False,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=False,
    )

    def no_image(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(
            1, scores.new_tensor([prompts.image_token_id], dtype=torch.long), -torch.inf
        )

    def finite(ids: Tensor, scores: Tensor) -> Tensor:
        return checked(no_image(ids, scores), prompts.items)  # -inf less -inf made it NaN again

    heard = [prompts.heard] if prompts.heard else []
    steps = [no_image, *processors, *heard, finite, *([draw] if draw else [])]
    endings = []
    if num_beams > 1:
        count, length = prompts.ids.shape
        early = EarlyEnd(
            count, length, num_beams, limits.end_ids, limits.max_new_tokens, length_penalty
        )
        steps.append(early.normalised)
        endings.append(early)
    cache: dict[str, object] = {}
    if custom is None:
        cache["past_key_values"] = prefix_cache(model, prompts, num_beams)
    with torch.no_grad(), _no_checkpoint_defaults(model):
        output = model.generate(
            input_ids=prompts.ids,
            attention_mask=prompts.mask,
            **cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(steps),
            stopping_criteria=StoppingCriteriaList(endings),
            custom_generate=custom,
        )
    return [_until_end(row, limits.end_ids) for row in output[:, prompts.ids.shape[1] :].tolist()]


def sampler(
    prompts: Prompts, seed: int, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Processor:
    """Draw the next token of every row.

    Temperature, top-k, top-p, then one number from the row's own generator. Temperature 0 takes
    the likeliest token.

    The generator is seeded by `seed` and the item's name, and every step draws one number: what a
    row says does not depend on its neighbours. The number is placed in the cumulative distribution
    over the vocabulary.
    """
    generators = [item_generator(seed, item) for item in prompts.items]

    def draw(ids: Tensor, scores: Tensor) -> Tensor:
        if temperature == 0.0:
            return torch.full_like(scores, -torch.inf).scatter(
                1, scores.argmax(dim=-1, keepdim=True), 0.0
            )
        highest = scores.amax(dim=-1, keepdim=True)  # so that no temperature overflows
        scores = warped((scores - highest).double() / temperature, top_p=top_p, top_k=top_k)
        uniform = torch.cat(
            [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
        )
        probabilities = torch.softmax(scores, dim=-1)
        cumulative = probabilities.cumsum(-1)
        place = uniform.to(scores.device)[:, None] * cumulative[:, -1:]
        possible = (probabilities > 0).int()
        last = scores.shape[-1] - 1 - possible.flip(-1).argmax(dim=-1, keepdim=True)
        chosen = torch.searchsorted(cumulative, place, right=True).minimum(last)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    return draw


def check_positions(model: Model, length: int, new_tokens: int, item: str) -> None:
    """Raise a UserError where a prompt of `length` tokens and its answer exceed the positions."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if known is not None and length + new_tokens > int(known):
        name, room = item.partition("\x00")[0], int(known) - length
        way = f"give --max-new-tokens {room} at most" if room > 0 else "ask less, or fewer images"
        raise UserError(
            f"{name!r}: {length} tokens of prompt and {new_tokens} of answer are more than this "
            f"model's {known} positions; {way}"
        )


def checked(scores: Tensor, items: Sequence[str]) -> Tensor:
    """Return the scores (B n, V) of B items, n rows each, unless a row has nothing to choose from.

    Raises
    ------
    UserError
        A score is NaN or +inf, or all scores of a row are -inf.
    """
    sound = scores.amax(dim=-1).isfinite()  # the maximum of a row with a NaN is NaN
    if not bool(sound.all()):
        row = int((~sound).nonzero()[0])
        item = items[row // (len(scores) // len(items))].partition("\x00")[0]
        raise UserError(
            f"{item!r}: the model's logits leave no token to choose (NaN or infinite); check its "
            "weights, or answer with --device cpu, where it computes in float32"
        )
    return scores


def warped(scores: Tensor, *, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Keep the `top_k` best tokens (0: all), then the smallest set that holds `top_p`.

    -inf elsewhere; the best token always stays.
    """
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        before = torch.softmax(ordered, dim=-1).cumsum(-1) - torch.softmax(ordered, dim=-1)
        beyond = before >= top_p
        beyond[..., 0] = False
        removed = torch.zeros_like(beyond).scatter(-1, order, beyond)
        scores = scores.masked_fill(removed, -torch.inf)
    return scores


def item_generator(seed: int, item: str) -> torch.Generator:
    """Return a CPU generator that depends on `seed` and the item's name alone."""
    digest = hashlib.sha256(f"{seed}\x00{item}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def _no_checkpoint_defaults(model: Model) -> Iterator[None]:
    """Hide the checkpoint's own generation settings, which fill what a call leaves unset."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(tokens: list[int], end_ids: tuple[int, ...]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in end_ids), len(tokens))
    return tokens[:end]
