"""OPERA (Huang et al. 2024, arXiv 2311.17911).

Beam search that penalises over-trust in one token, and goes back.

With A the last layer's attention, its largest head, each row divided by its sum, and W = scale A
between new tokens:

- column j of a candidate scores s_j = 1e-7 prod_{i >= j} W_ij; phi = max_j s_j is taken off the
  candidate's logit and
  c = argmax_j remembered; up to `short_window` new tokens phi is minus the newest row's attention
  to the image;
- where all beams name one column too often, the search goes back to the state after it and chooses
  there anew (`rule`), at most `candidates` times a position.

Products are taken as sums of logarithms in float32 and then rounded to half precision, in which the
published code keeps them (`emulate_half`); what overflows there is its largest number here. Items
are searched side by side, each at a step of its own; the model's passes, which they share, are in
`opera_passes`.

n beams of an item, C candidates of each, t new tokens, T tokens so far.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass as settings_class
from torch import Tensor

from pipelines.decoding.attention import watching
from pipelines.decoding.early_end import attainable
from pipelines.decoding.generation import Limits, checked, generate
from pipelines.decoding.opera_passes import Passes
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Count, Number, Place, Positive
from shared.errors import UserError
from student_train.upstream import kernel_name

Move = Literal["on", "back", "over"]

_LOG_UNIT = math.log(1e-7)
_LOG_LARGEST = 80.0  # e^80 ends any candidate and is finite in float32
_LARGEST_HALF = 65504.0


@settings_class(frozen=True, config=STRICT)
class Settings:
    """Published values.

    `rule` is when and how the search goes back. `published`, as the code does: the column of most
    beams *now* is in the history of every slot of the beam more than `threshold` times, whoever
    held the slot; after the return the whole vocabulary is open, by the logits alone, and what was
    chosen there before has the least of them. `paper`: a history goes with its beam, the column is
    the one named most often, and the next likeliest candidates take the place of those excluded.
    """

    num_beams: Count = 5
    scale: Positive = 50.0
    threshold: Place = 15
    candidates: Count = 5
    penalty: Number = 1.0
    history: Count = 512
    short_window: Count = 10
    length_penalty: Number = 1.0
    emulate_half: bool = True
    rule: Literal["published", "paper"] = "published"


class Beams(NamedTuple):
    """n running beams after t new tokens.

    Attributes
    ----------
    tokens, scores
        (n, t) and (n,) accumulated log-probabilities.
    columns
        (n, t) sums over the rows so far of log W in each column.
    locations
        (n, t) the column named at each step.
    """

    tokens: Tensor
    scores: Tensor
    columns: Tensor
    locations: Tensor


class Finished(NamedTuple):
    """An ended answer with its length-normalised score."""

    score: float
    tokens: list[int]


@dataclass
class _Past:
    """What going back needs, by number of new tokens.

    The beams, the ended answers, what was chosen and is excluded.
    """

    beams: dict[int, Beams] = field(default_factory=dict)
    finished: dict[int, list[Finished]] = field(default_factory=dict)
    chosen: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    excluded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    returns: Counter[int] = field(default_factory=Counter)
    named: list[Tensor] = field(default_factory=list)  # (n,) a step: the column of each slot


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    if "flash" in kernel_name(model.get_decoder().config):
        raise UserError(
            "OPERA needs an attention mask of its own; load the model with model.attention=sdpa or "
            "eager"
        )

    _check_window(model, prompts, limits)

    def search(model: Model, input_ids: Tensor, **unused: object) -> Tensor:
        answers = _answers(model, prompts, limits, settings)
        longest = max(map(len, answers))  # a shorter one ends in an end token
        rows = [tokens + [prompts.pad_token_id] * (longest - len(tokens)) for tokens in answers]
        return torch.cat([input_ids, input_ids.new_tensor(rows)], dim=1)

    return generate(model, prompts, limits, custom=search)


def _check_window(model: Model, prompts: Prompts, limits: Limits) -> None:
    """Refuse answers beyond a sliding window: OPERA's own mask of its places shows all of them."""
    config = model.get_decoder().config
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if slides else None
    longest = int(prompts.mask.sum(1).max())
    if window is not None and longest + limits.max_new_tokens > int(window):
        raise UserError(
            f"OPERA needs prompt and answer within this model's sliding window of {window} tokens, "
            f"but a prompt has {longest} and its answer may have {limits.max_new_tokens}; lower "
            "--max-new-tokens or leave opera out"
        )


def _answers(model: Model, prompts: Prompts, limits: Limits, settings: Settings) -> list[list[int]]:
    """Search for all items; return the best answer of each, its end token included."""
    searches = [_Search(item, prompts, limits, settings) for item in range(len(prompts.items))]
    passes, running = Passes(model, prompts), searches
    with watching(model, [len(model.get_decoder().layers) - 1], passes.see):
        logits = list(torch.split(passes.first(), 1))
        while running:
            asked = [search.candidates(of) for search, of in zip(running, logits, strict=True)]
            hidden, attention = passes.attempt(
                [tokens for tokens, _ in asked], [search.item for search in running]
            )
            running, rows = _advanced(running, asked, attention)
            if running:
                logits = _kept(passes, running, rows, hidden)
    return [max(search.finished, key=lambda one: one.score).tokens for search in searches]


def _advanced(
    running: "Sequence[_Search]",
    asked: Sequence[tuple[Tensor, Tensor]],
    attention: Sequence[Tensor],
) -> "tuple[list[_Search], list[Tensor]]":
    """Move every search on; return those that go on, and which old rows their beams come from."""
    going: list[_Search] = []
    rows: list[Tensor] = []
    first = 0
    for search, (tokens, tried), seen in zip(running, asked, attention, strict=True):
        if search.advance(tokens, tried, seen) != "over":
            going.append(search)
            rows.append(search.beam + first)
        first += len(tokens)
    return going, rows


def _kept(
    passes: Passes, going: "Sequence[_Search]", rows: Sequence[Tensor], hidden: Tensor
) -> list[Tensor]:
    """Let the passes follow the searches; return the next logits of each one's beams."""
    row, place = torch.cat(list(rows)), torch.cat([search.place for search in going])
    passes.keep(row, place, [search.item for search in going])
    counts = [len(search.beam) for search in going]
    logits = list(torch.split(passes.logits(hidden[row, place]), counts))
    first = 0
    for number, search in enumerate(going):
        if search.last_move == "back":
            logits[number], _ = passes.rewrite(first, search.item, search.beams.tokens)
            if search.settings.rule == "published":
                tokens = search.choose_anew(logits[number])
                logits[number], attention = passes.rewrite(first, search.item, tokens)
                search.take_note(attention)
        first += len(search.beam)
    return logits


class _Search:
    """The beam search over one item: its beams, what has ended, where it may go back to.

    After a move `beam` and `place` (n,) say which old beam and which of its candidates each running
    beam comes from; after going back they only name a row of the item for each, to be written anew.
    """

    def __init__(self, item: int, prompts: Prompts, limits: Limits, settings: Settings) -> None:
        real = prompts.mask[item].bool()
        self.item, self.limits, self.settings = item, limits, settings
        self.name = prompts.items[item]
        self.position = 0  # the one that the last return was counted under
        self.image_token_id = prompts.image_token_id
        self.image, self.length = prompts.image_mask[item][real], int(real.sum())
        device = prompts.ids.device
        self.beams = Beams(
            torch.zeros(1, 0, dtype=torch.long, device=device),
            torch.zeros(1, device=device),
            torch.zeros(1, 0, device=device),
            torch.zeros(1, 0, dtype=torch.long, device=device),
        )
        self.finished: list[Finished] = []
        self.past = _Past()
        self.beam = self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.last_move: Move = "on"

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens of each beam (n, C) and their logits.

        Excluded continuations are left out.
        """
        logits = logits.clone()
        logits[:, self.image_token_id] = -torch.inf
        if self.settings.rule == "paper":
            for beam, token in self.past.excluded.get(self.beams.tokens.shape[1], []):
                logits[beam, token] = -torch.inf
        checked(logits, [self.name])
        best = logits.topk(min(self.settings.candidates, logits.shape[1]), dim=1)
        return best.indices, best.values

    def advance(self, tokens: Tensor, tried: Tensor, attention: Tensor) -> Move:
        """Move on by one token, or back.

        Given are the candidates (n, C), their logits and attention (n, C, T + 1).
        """
        if self.last_move == "over":  # it was, right after going back
            return self.last_move
        beams, step = self.beams, self.beams.tokens.shape[1]
        self.past.beams[step], self.past.finished[step] = beams, list(self.finished)
        scores, columns, named = self._penalised(tried, attention)
        current = named.mode(dim=1).values
        locations = torch.cat([beams.locations, current[:, None]], dim=1)
        self.past.named[step:] = [current]
        find = self._published_return if self.settings.rule == "published" else self._paper_return
        target = find(locations, step)
        if target is not None:
            self._go_back(target)
            self.last_move = "back"
            return self.last_move
        self.beam, self.place, over = self._select(scores, tokens)
        if not over:
            beam, place = self.beam, self.place
            self.past.chosen[step] = list(
                zip(beam.tolist(), tokens[beam, place].tolist(), strict=True)
            )
            self.beams = Beams(
                torch.cat([beams.tokens[beam], tokens[beam, place][:, None]], dim=1),
                scores[beam, place],
                columns[beam, place],
                locations[beam],
            )
        self.last_move = "over" if over or self._settled() else "on"
        return self.last_move

    def _penalised(self, tried: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates' scores, column sums (n, C, t + 1) and named columns (n, C)."""
        settings, beams = self.settings, self.beams
        row = attention / attention.sum(-1, keepdim=True)
        newest = (settings.scale * row[:, :, self.length :]).log()  # (n, C, t + 1)
        old = torch.cat([beams.columns, beams.columns.new_zeros(len(beams.columns), 1)], dim=1)
        columns = old[:, None] + newest
        products = (columns + _LOG_UNIT).clamp(max=_LOG_LARGEST).exp()
        if settings.emulate_half:  # underflow makes ties, of which the first column is named
            products = products.half().float().clamp(max=_LARGEST_HALF)
            named = products.argmax(dim=-1)
        else:
            named = columns.argmax(dim=-1)
        if newest.shape[-1] <= settings.short_window:
            phi = -row[:, :, : self.length][:, :, self.image].sum(-1)
        else:
            phi = products.amax(dim=-1)
        scores = beams.scores[:, None] + torch.log_softmax(tried - settings.penalty * phi, dim=-1)
        return scores, columns, named

    def _published_return(self, locations: Tensor, step: int) -> int | None:
        """Return the number of new tokens to go back to by the rule of the code, or None."""
        settings, past = self.settings, self.past
        common = int(past.named[step].mode().values)
        if common < settings.short_window:
            return None
        for slot in range(len(past.named[step])):
            held = [one[slot] for one in past.named if slot < len(one)]
            if sum(int(one) == common for one in held) <= settings.threshold:
                return None
        position = common + 1
        if past.returns[position] >= settings.candidates:
            position -= 1
        target = min(position, step - 1)
        too_old = position + 1 >= settings.history or step - target >= settings.history
        if target < 0 or too_old or past.returns[position] >= settings.candidates:
            return None
        self.position = position
        return target

    def _paper_return(self, locations: Tensor, step: int) -> int | None:
        """Return the number of new tokens to go back to by the rule of the paper, or None."""
        settings = self.settings
        recent = locations[:, -settings.history :]
        common = int(recent.flatten().mode().values)
        repeated = bool(((recent == common).sum(1) > settings.threshold).all())
        if not repeated or common < settings.short_window:
            return None
        for target in (common + 1, common):
            if target < step and self.past.returns[target] < settings.candidates:
                self.position = target
                return target
        return None

    def _go_back(self, target: int) -> None:
        """Restore the state after `target` new tokens, without what it chose."""
        past, position, step = self.past, self.position, self.beams.tokens.shape[1]
        past.returns[position] += 1
        if self.settings.rule == "paper":
            for later in [place for place in past.excluded if place > position]:
                del past.excluded[later]  # those states led elsewhere
            self.finished = list(past.finished[target])
        else:  # as the code forgets, which counts some places from the end of its list
            gone = {self.settings.history - 1 - back for back in range(step - position - 1)}
            for place in gone | {position + 1}:
                past.excluded.pop(place, None)
            del past.named[target + 1 :]
            self.finished = past.finished[target]  # itself: what ends after a return stays ended
        # Last: what is forgotten from the end of the list may be this very place.
        past.excluded.setdefault(position, []).extend(past.chosen[target])
        self.beams = past.beams[target]
        self.beam = torch.zeros_like(self.beams.tokens[:, 0])
        self.place = self.beam

    def choose_anew(self, logits: Tensor) -> Tensor:
        """Choose from the whole vocabulary after going back; return the beams' tokens (n, t + 1).

        `logits` (n, V) are the model's after the t tokens. What was chosen here before has the
        least of its row.
        """
        beams, step = self.beams, self.beams.tokens.shape[1]
        logits, least = logits.clone(), logits.amin(dim=1)
        for row, word in self.past.excluded[self.position]:
            logits[row, word] = least[row]
        logits[:, self.image_token_id] = -torch.inf
        checked(logits, [self.name])
        scores = beams.scores[:, None] + torch.log_softmax(logits, dim=-1)
        every = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        beam, token, _ = self._select(scores, every, len(beams.tokens))
        self.past.chosen[step] = list(zip(beam.tolist(), token.tolist(), strict=True))
        self.beams = Beams(
            torch.cat([beams.tokens[beam], token[:, None]], dim=1),
            scores[beam, token],
            beams.columns[beam],
            torch.cat([beams.locations, self.past.named[step][:, None]], dim=1)[beam],
        )
        if self._settled():
            self.last_move = "over"
        return self.beams.tokens

    def take_note(self, attention: Tensor) -> None:
        """Add the row of the newest token, (n, T) attention, to the columns."""
        row = attention / attention.sum(-1, keepdim=True)
        newest = (self.settings.scale * row[:, self.length :]).log()
        old = torch.cat([self.beams.columns, newest.new_zeros(len(newest), 1)], dim=1)
        self.beams = self.beams._replace(columns=old + newest)

    def _select(
        self, scores: Tensor, tokens: Tensor, rows: int | None = None
    ) -> tuple[Tensor, Tensor, bool]:
        """Choose the next beams (beam, candidate), note the answers that end here.

        At most `rows` of them. The flag says nothing runs on.
        """
        wanted, width = self.settings.num_beams, tokens.shape[1]
        best = (
            scores.flatten()
            .topk(min((1 + max(1, len(self.limits.end_ids))) * wanted, scores.numel()))
            .indices
        )
        length = self.beams.tokens.shape[1] + 1
        running: list[int] = []
        for rank, index in enumerate(best.tolist()):
            beam, place = divmod(index, width)
            token = int(tokens[beam, place])
            if token in self.limits.end_ids or length == self.limits.max_new_tokens:
                if rank < wanted:
                    score = float(scores[beam, place]) / length**self.settings.length_penalty
                    self.finished.append(
                        Finished(score, [*self.beams.tokens[beam].tolist(), token])
                    )
            elif len(running) < (rows or wanted):
                running.append(index)
        self.finished.sort(key=lambda one: -one.score)
        del self.finished[wanted:]
        chosen = torch.tensor(running, dtype=torch.long, device=tokens.device)
        return chosen // width, chosen % width, not running

    def _settled(self) -> bool:
        """Whether the running beams have no more to say.

        None can still beat the worst of a full list of ended answers; or none can become the best,
        while the search can only ever go back to states after this one.
        """
        settings, finished = self.settings, self.finished
        length, best = self.beams.tokens.shape[1], float(self.beams.scores.max())
        if finished and length <= settings.short_window:
            bound = attainable(best, length, self.limits.max_new_tokens, settings.length_penalty)
            if bound <= finished[0].score:
                return True
        full = len(finished) == settings.num_beams
        return full and best / length**settings.length_penalty <= finished[-1].score
