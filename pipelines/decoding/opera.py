"""OPERA (Huang et al. 2024, arXiv 2311.17911): beam search that penalises over-trust in one token, and goes back.

With A the last layer's attention, its largest head, each row divided by its sum, and W = scale A between new tokens:

- column j of a candidate scores s_j = 1e-7 prod_{i >= j} W_ij; phi = max_j s_j is taken off the candidate's logit and
  c = argmax_j remembered; up to `short_window` new tokens phi is minus the newest row's attention to the image;
- where every beam's history names one position s more than `threshold` times (s >= `short_window`), the search goes
  back to the state after token s and excludes what it chose there, at most `candidates` times a position.

Products are taken as sums of logarithms in float32; the published code multiplies in half precision, where they
overflow: `emulate_half` rounds phi as half does. Here all candidates of all beams go through the model in one forward
pass (each sees the past and itself), and the one that is chosen needs no second pass.

One item at a time: going back is a place of its own for each item.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.decoding.attention import Rows, watching
from pipelines.decoding.early_end import attainable
from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prefix import prefix_cache
from pipelines.decoding.prompts import Model, Prompts
from shared.console import UserError

_LOG_UNIT = math.log(1e-7)
_LOG_LARGEST = 80.0  # e^80 ends any candidate and is finite in float32


@dataclass(frozen=True)
class Settings:
    """Published values."""

    num_beams: int = 5
    scale: float = 50.0
    threshold: int = 15
    candidates: int = 5
    penalty: float = 1.0
    history: int = 512
    short_window: int = 10
    length_penalty: float = 1.0
    emulate_half: bool = False


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
    """What going back needs, by number of new tokens: the beams, the ended answers, what was chosen and is excluded."""

    beams: dict[int, Beams] = field(default_factory=dict)
    finished: dict[int, list[Finished]] = field(default_factory=dict)
    chosen: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    excluded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    returns: Counter[int] = field(default_factory=Counter)


def decode(model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int) -> list[list[int]]:
    """Answer every prompt of the batch, one after the other."""
    if "flash" in str(model.get_decoder().config._attn_implementation):
        raise UserError("OPERA needs an attention mask of its own; load the model with model.attention=sdpa or eager")
    answers = []
    for row in range(len(prompts.items)):
        one = prompts.select([row])

        def search(model: Model, input_ids: Tensor, one: Prompts = one, **unused: Any) -> Tensor:
            tokens = _Search(model, one, limits, settings).run()
            return torch.cat([input_ids, input_ids.new_tensor([tokens])], dim=1)

        answers += generate(model, one, limits, custom=search)
    return answers


class _Search:
    """The beam search over one prompt."""

    def __init__(self, model: Model, prompts: Prompts, limits: Limits, settings: Settings) -> None:
        self.model, self.prompts, self.limits, self.settings = model, prompts, limits, settings
        self.image = prompts.image_mask[0]
        self.length = prompts.ids.shape[1]
        self.rows: Rows | None = None

    def run(self) -> list[int]:
        """Return the best answer's tokens, its end token included."""
        device = self.prompts.ids.device
        beams = Beams(
            torch.zeros(1, 0, dtype=torch.long, device=device),
            torch.zeros(1, device=device),
            torch.zeros(1, 0, device=device),
            torch.zeros(1, 0, dtype=torch.long, device=device),
        )
        finished: list[Finished] = []
        past = _Past()
        last_layer = len(self.model.get_decoder().layers) - 1
        with watching(self.model, [last_layer], self._see):
            logits = self._prefill()
            while True:
                step = beams.tokens.shape[1]
                past.beams[step], past.finished[step] = beams, list(finished)
                tokens, tried = self._candidates(logits, past.excluded.get(step, []))
                hidden = self._try(tokens, step)
                scores, columns, named = self._penalised(tried, beams)
                locations = torch.cat([beams.locations, named.mode(dim=1).values[:, None]], dim=1)
                target = self._return_to(locations, step, past)
                if target is not None:
                    past.returns[target] += 1
                    past.excluded.setdefault(target, []).extend(past.chosen[target])
                    for later in [place for place in past.excluded if place > target]:
                        del past.excluded[later]  # those states led elsewhere
                    beams, finished = past.beams[target], list(past.finished[target])
                    logits = self._rebuild(beams)
                    continue
                beam, place, over = self._select(scores, tokens, beams, finished)
                if over:
                    break
                past.chosen[step] = list(zip(beam.tolist(), tokens[beam, place].tolist(), strict=True))
                beams = Beams(
                    torch.cat([beams.tokens[beam], tokens[beam, place][:, None]], dim=1),
                    scores[beam, place],
                    columns[beam, place],
                    locations[beam],
                )
                self._keep(beam, place, step)
                logits = self.model.lm_head(hidden[beam, place]).float()
                if self._settled(beams, finished):
                    break
        return max(finished, key=lambda one: one.score).tokens

    def _see(self, layer: int, rows: Rows) -> None:
        self.rows = rows

    def _prefill(self) -> Tensor:
        """Make the last prompt token's step on a fresh copy of the prompt's cache; return next-token logits (1, V)."""
        self.cache = prefix_cache(self.model, self.prompts)
        last = self.prompts.ids[:, -1:]
        output = self.model.model(
            input_ids=last,
            position_ids=torch.full_like(last, self.length - 1),
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = self.model.lm_head(output.last_hidden_state[:, -1]).float()
        return logits

    def _rebuild(self, beams: Beams) -> Tensor:
        """Put the beams' tokens behind the prompt's keys and values again; return their next-token logits (n, V)."""
        count, step = beams.tokens.shape
        for layer in self.cache.layers:
            layer.keys = layer.keys[:1, :, : self.length].repeat(count, 1, 1, 1)
            layer.values = layer.values[:1, :, : self.length].repeat(count, 1, 1, 1)
        positions = torch.arange(self.length, self.length + step, device=beams.tokens.device).expand(count, -1)
        output = self.model.model(
            input_ids=beams.tokens, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        logits: Tensor = self.model.lm_head(output.last_hidden_state[:, -1]).float()
        return logits

    def _candidates(self, logits: Tensor, excluded: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens of each beam (n, C) and their logits, excluded continuations left out."""
        logits = logits.clone()
        logits[:, self.prompts.image_token_id] = -torch.inf
        for beam, token in excluded:
            logits[beam, token] = -torch.inf
        best = logits.topk(min(self.settings.candidates, logits.shape[1]), dim=1)
        return best.indices, best.values

    def _try(self, tokens: Tensor, step: int) -> Tensor:
        """Feed every candidate (n, C) after the same past, each blind to its rivals; return last states (n, C, d)."""
        count, width = tokens.shape
        before = self.length + step
        dtype = self.model.get_decoder().embed_tokens.weight.dtype
        mask = torch.full((width, before + width), torch.finfo(dtype).min, dtype=dtype, device=tokens.device)
        mask[:, :before] = 0
        mask[:, before:].fill_diagonal_(0)
        output = self.model.model(
            input_ids=tokens,
            attention_mask=mask.expand(count, 1, -1, -1),
            position_ids=torch.full_like(tokens, before),
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _penalised(self, tried: Tensor, beams: Beams) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates' scores (n, C), column sums (n, C, t + 1) and named columns (n, C)."""
        settings, step = self.settings, beams.tokens.shape[1]
        assert self.rows is not None
        width, before = tried.shape[1], self.length + step
        attention = torch.softmax(self.rows.logits(width), dim=-1).amax(1)  # (n, C, K)
        itself = attention[:, range(width), range(before, before + width)]
        row = torch.cat([attention[:, :, :before], itself[:, :, None]], dim=2)
        row = row / row.sum(-1, keepdim=True)
        newest = (settings.scale * row[:, :, self.length :]).log()  # (n, C, t + 1)
        old = torch.cat([beams.columns, beams.columns.new_zeros(len(beams.columns), 1)], dim=1)
        columns = old[:, None] + newest
        largest, named = columns.max(dim=-1)
        if step + 1 <= settings.short_window:
            phi = -row[:, :, : self.length][:, :, self.image].sum(-1)
        else:
            phi = (largest + _LOG_UNIT).clamp(max=_LOG_LARGEST).exp()
        if settings.emulate_half:
            phi = phi.half().float()
        scores = beams.scores[:, None] + torch.log_softmax(tried - settings.penalty * phi, dim=-1)
        return scores, columns, named

    def _return_to(self, locations: Tensor, step: int, past: _Past) -> int | None:
        """Return the number of new tokens to go back to, or None to go on."""
        settings = self.settings
        recent = locations[:, -settings.history :]
        common = int(recent.flatten().mode().values)
        repeated = bool(((recent == common).sum(1) > settings.threshold).all())
        if not repeated or common < settings.short_window:
            return None
        for target in (common + 1, common):
            if target < step and past.returns[target] < settings.candidates:
                return target
        return None

    def _select(
        self, scores: Tensor, tokens: Tensor, beams: Beams, finished: list[Finished]
    ) -> tuple[Tensor, Tensor, bool]:
        """Choose the next beams (beam, candidate), note the answers that end here; the flag says nothing runs on."""
        wanted, width = self.settings.num_beams, tokens.shape[1]
        best = scores.flatten().topk(min((1 + max(1, len(self.limits.end_ids))) * wanted, scores.numel())).indices
        length = beams.tokens.shape[1] + 1
        running: list[int] = []
        for rank, index in enumerate(best.tolist()):
            beam, place = divmod(index, width)
            token = int(tokens[beam, place])
            if token in self.limits.end_ids or length == self.limits.max_new_tokens:
                if rank < wanted:
                    score = float(scores[beam, place]) / length**self.settings.length_penalty
                    finished.append(Finished(score, [*beams.tokens[beam].tolist(), token]))
            elif len(running) < wanted:
                running.append(index)
        finished.sort(key=lambda one: -one.score)
        del finished[wanted:]
        chosen = torch.tensor(running, dtype=torch.long, device=tokens.device)
        return chosen // width, chosen % width, not running

    def _settled(self, beams: Beams, finished: list[Finished]) -> bool:
        """Whether the running beams have no more to say.

        None can still beat the worst of a full list of ended answers; or none can become the best, while the search
        can only ever go back to states after this one.
        """
        settings, length, best = self.settings, beams.tokens.shape[1], float(beams.scores.max())
        if finished and length <= settings.short_window:
            bound = attainable(best, length, self.limits.max_new_tokens, settings.length_penalty)
            if bound <= finished[0].score:
                return True
        full = len(finished) == settings.num_beams
        return full and best / length**settings.length_penalty <= finished[-1].score

    def _keep(self, beam: Tensor, place: Tensor, step: int) -> None:
        """Leave in the cache, for each new beam, its past and the chosen candidate."""
        before = self.length + step
        for layer in self.cache.layers:
            layer.keys = _picked(layer.keys, beam, place, before)
            layer.values = _picked(layer.values, beam, place, before)


def _picked(states: Tensor, beam: Tensor, place: Tensor, before: int) -> Tensor:
    newest = states[beam, :, before + place][:, :, None]
    return torch.cat([states[beam, :, :before], newest], dim=2)
