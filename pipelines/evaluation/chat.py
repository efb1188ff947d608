"""A conversation with a run: questions in turn, about the images shown so far.

Every answer sees the whole conversation, encoded as in training, W acting on every image of it.
"""

from typing import TYPE_CHECKING

from pipelines.decoding.methods import Decoding, watch_of
from pipelines.evaluation.generate import picture_at
from pipelines.evaluation.loading import Loaded, end_ids, pad_id
from shared.records import IMAGE_MARK, Turn, front_images

if TYPE_CHECKING:
    from PIL.Image import Image


class Conversation:
    """What was shown, asked and answered.

    Parameters
    ----------
    student
        Who answers.
    decoding
        How, its settings as for an evaluation.
    max_new_tokens, seed
        Where an answer is cut; of the methods that draw.
    system
        A system message of its own, for all that is asked; where empty, the template's.
    """

    def __init__(
        self,
        student: Loaded,
        decoding: Decoding,
        max_new_tokens: int = 128,
        seed: int = 0,
        system: str = "",
    ) -> None:
        self._student = student
        self._decoding = decoding.settled(student.model)
        self._most = max_new_tokens
        self._seed, self._system = seed, system
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing shown, nothing said."""
        self.turns: list[Turn] = []
        self._images: list[Image] = []  # of the turns
        self._shown: list[Image] = []  # since the last question

    def show(self, image: str) -> None:
        """Show an image with the next question; raises UserError where it cannot be read."""
        self._shown.append(picture_at(image))

    def ask(self, question: str) -> str:
        """Return the answer to a question; a refused one leaves the conversation as it was.

        Raises
        ------
        UserError
            The question holds an image mark or a special token, or the conversation has become
            longer than the model's positions.
        """
        from pipelines.decoding.generation import Limits
        from pipelines.decoding.prompts import collate

        processor, model = self._student.processor, self._student.model
        words = question.replace(IMAGE_MARK, " ").strip()
        asked = Turn("human", front_images(words, len(self._shown)))
        turns, images = [*self.turns, asked], [*self._images, *self._shown]
        inputs = processor.encode_turns(turns, images, system=self._system)
        pad, watch = pad_id(processor), watch_of([self._decoding])
        reworded = [processor.reworded(turns, len(images), system=self._system)]
        prompts = collate([inputs], [words], model, pad, watch, reworded)
        limits = Limits(self._most, end_ids(processor))
        settings = self._decoding.settings
        [tokens] = self._decoding.decode(model, prompts, limits, settings, self._seed)
        answer = str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        self.turns, self._images, self._shown = [*turns, Turn("gpt", answer)], images, []
        return answer
