"""The model `medalign` of lmms-eval: a run of ours under one of our decoding methods.

Only lmms-eval imports this file: its base class is there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from PIL import Image

from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import decodings, watch_of
from pipelines.decoding.prompts import collate
from pipelines.evaluation.arms import EVERYTHING, last_arm, preset_of
from pipelines.evaluation.loading import end_ids, load_student, pad_id
from shared.console import track
from shared.errors import UserError
from shared.processes import this_process
from shared.records import strip_marks


class _Asked(NamedTuple):
    """One request: its place, its name, what it asks and shows, and where the answer ends."""

    place: int
    name: str
    question: str
    pictures: list[Image.Image]
    max_new_tokens: int
    until: tuple[str, ...]


class MedAlign(lmms):  # type: ignore[misc]
    """A run's last arm (MEDALIGN's where it has both) that answers `generate_until`.

    Parameters
    ----------
    run
        A run, an adapter folder or a model folder, as of `medalign evaluate`.
    decode, preset, seed
        One decoding method, perhaps with its settings (`vcd@alpha=0.5;beta=0.2`), and what
        `--preset` and `--seed` are. The task's temperature, beams and top_p are not read: the
        method decides.
    max_new_tokens
        Where the task names none.
    batch_size, device
        As lmms-eval gives them.

    Raises
    ------
    UserError
        As `medalign generate`.
    """

    is_simple = True

    def __init__(
        self,
        run: str,
        decode: str = "beam",
        preset: str = "published",
        seed: int = 0,
        max_new_tokens: int = 128,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        unknown = [name for name in others if name != "max_batch_size"]
        if unknown:
            raise UserError(f"medalign in lmms-eval knows no model_args {', '.join(unknown)}")
        if decode == EVERYTHING:
            raise UserError("one model has one decoding method; name it, as decode=vcd")
        folder = last_arm(Path(run))
        [self.decoding] = decodings([decode], preset_of(preset, {"": folder}))
        process = this_process()
        self._rank, self._world_size = process.rank, process.world
        if process.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()
        self.student = load_student(folder, device)
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer every request, in their order."""
        asked = [self._asked(place, one.args) for place, one in enumerate(requests)]
        order = sorted(asked, key=lambda one: (one.max_new_tokens, len(one.question)))
        starts = range(0, len(order), self.batch_size)
        batches = [
            part
            for start in starts
            for part in _of_one_limit(order[start : start + self.batch_size])
        ]
        answers: dict[int, str] = {}
        for batch in track(batches, len(batches), "medalign", "batches"):
            for one, text in zip(batch, self._answers(batch), strict=True):
                answers[one.place] = text
        return [answers[place] for place in range(len(asked))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise: decoding methods generate, they rank no continuations."""
        raise NotImplementedError("medalign answers tasks of output_type generate_until alone")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise: a question has one answer here."""
        raise NotImplementedError("medalign answers tasks of output_type generate_until alone")

    def _asked(self, place: int, args: Sequence[Any]) -> _Asked:
        context, given, doc_to_visual, document, task, split = args
        shown = doc_to_visual(self.task_dict[task][split][document]) or []
        if not all(isinstance(one, Image.Image) for one in shown):
            raise UserError(f"task {task}, document {document}: medalign sees images, no video")
        until = given.get("until") or ()
        return _Asked(
            place,
            f"{task} {split} {document}",
            strip_marks(context).strip(),
            list(shown),
            int(given.get("max_new_tokens") or self.max_new_tokens),
            (until,) if isinstance(until, str) else tuple(until),
        )

    def _answers(self, batch: Sequence[_Asked]) -> list[str]:
        model, processor = self.student.model, self.student.processor
        encoded = [processor.encode(one.question, one.pictures) for one in batch]
        reworded = [processor.reworded(one.question, len(one.pictures)) for one in batch]
        names, pad = [one.name for one in batch], pad_id(processor)
        prompts = collate(encoded, names, model, pad, watch_of([self.decoding]), reworded)
        limits = Limits(batch[0].max_new_tokens, end_ids(processor))
        decoded = self.decoding.decode(model, prompts, limits, self.decoding.settings, self.seed)
        texts = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in decoded]
        return [_cut(text, one.until).strip() for text, one in zip(texts, batch, strict=True)]


def _of_one_limit(batch: Sequence[_Asked]) -> list[list[_Asked]]:
    """Part a batch where the greatest length of an answer changes."""
    limits = dict.fromkeys(one.max_new_tokens for one in batch)
    return [[one for one in batch if one.max_new_tokens == limit] for limit in limits]


def _cut(text: str, until: Sequence[str]) -> str:
    for mark in until:
        text = text.partition(mark)[0] if mark else text
    return text
