"""What the arms of a run hold of an image: kept by the evaluation, or observed when asked for.

A model is loaded when somebody asks for it and not before, one at a time.

N student patches, n images of an item, d student width; `patches` are n N.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pipelines.decoding.methods import decodings
from pipelines.evaluation.chat import Conversation
from pipelines.evaluation.loading import Loaded, load_base_student, load_student
from pipelines.evaluation.observed import kept_attention, observe, states_folder
from shared.console import note
from shared.errors import UserError
from shared.imaging.images import ImageReference
from shared.recipe import Recipe, load_recipe

BEFORE = "before"
_KEPT = 32  # observations in memory, of up to 5 MB each


class Observation(NamedTuple):
    """What an arm held of an item's images, one after the other.

    `attention` (n N,) by decoder layer, not normalised; `tokens` (n N, d) at layer `layer`, None
    where only the attention was kept. `layer` is the distillation layer, or the middle one of a
    model without a recipe.
    """

    layer: int
    attention: Mapping[int, Float[np.ndarray, " patches"]]
    tokens: Float[np.ndarray, "patches d"] | None


class Students:
    """The arms of a run by name, and `before`: the model that they began with.

    Parameters
    ----------
    arms
        Folders by name.
    evaluation
        Where the evaluation kept states.
    recipe
        Of the last arm; None for a plain model.
    base
        Where the base model is, if not where the recipes say.
    device
        The best one, where none is given.
    """

    def __init__(
        self,
        arms: Mapping[str, Path],
        evaluation: Path,
        recipe: Recipe | None,
        base: str | None = None,
        device: str | None = None,
    ) -> None:
        self._arms = dict(arms)
        self._evaluation = evaluation
        self._recipe = recipe
        self._base = base
        self._device = device
        self._loaded: tuple[str, Loaded] | None = None
        self._seen: OrderedDict[tuple[str, str], Observation] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The arms, and `before` where they began with a model."""
        return [*([] if self._recipe is None else [BEFORE]), *self._arms]

    def weights(self) -> int | None:
        """Bytes of the model's weights; None where they are not in a folder of this machine."""
        folder = next(iter(self._arms.values()), None)
        if self._recipe is not None:
            model = self._recipe.model
            folder = Path(self._base or model.path or model.name).expanduser()
        if folder is None or not folder.is_dir():
            return None
        files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        return sum(file.stat().st_size for file in files) or None

    def known(self, name: str, item: str) -> Observation | None:
        """Return what is known of an arm and the item of this id without loading a model."""
        with self._lock:
            seen = self._seen.get((name, item))
        if seen is not None:
            return seen
        kept = kept_attention(states_folder(self._evaluation, name), item)
        return Observation(self._layer(name, len(kept)), kept, None) if kept else None

    def ask(
        self, name: str, item: str, question: str, images: Sequence[ImageReference], system: str
    ) -> Observation:
        """Put the question of an item to an arm, its model loaded where it is not.

        `system` is the item's own system message, where it has one.

        Raises
        ------
        UserError
            No such arm, no image, or a model that cannot be loaded.
        """
        if name not in self.names:
            raise UserError(f"no arm {name!r}; there are {', '.join(self.names) or 'none'}")
        if not images:
            raise UserError("this item shows no image")
        with self._lock:
            found = self._seen.get((name, item))
            if found is None:
                found = self._observed(name, question, images, system)
                self._seen[name, item] = found
                if len(self._seen) > _KEPT:
                    self._seen.popitem(last=False)
        return found

    def load(self) -> None:
        """Load the model that answers: the last arm's.

        Raises
        ------
        UserError
            There is no arm, or it cannot be loaded.
        """
        if not self._arms:
            raise UserError("no model of this run can be asked: start without --answers")
        with self._lock:
            self._student(next(reversed(self._arms)))

    def answer(self, question: str, image: ImageReference) -> str:
        """Return the last arm's answer, by greedy decoding, to a question about one image.

        Raises
        ------
        UserError
            There is no arm, or the question cannot be put.
        """
        if not self._arms:
            raise UserError("no model of this run can be asked")
        [greedy] = decodings(["greedy"])
        with self._lock:  # one at a time; the others wait
            conversation = Conversation(self._student(next(reversed(self._arms))), greedy)
            conversation.show(str(image))
            return conversation.ask(question)

    def _observed(
        self, name: str, question: str, images: Sequence[ImageReference], system: str
    ) -> Observation:
        student = self._student(name)
        layers = range(len(student.model.get_decoder().layers))
        layer = self._layer(name, len(layers))
        seen = observe(student, question, images, layers, system=system)
        return Observation(layer, seen.attention, seen.tokens[layer])

    def _student(self, name: str) -> Loaded:
        if self._loaded is not None and self._loaded[0] == name:
            return self._loaded[1]
        self._loaded = None  # one model in memory at a time
        note(f"loading {name}")
        if name == BEFORE and self._recipe is not None:
            last = next(reversed(self._arms.values()))
            student = load_base_student(last, self._recipe, self._device, self._base)
        else:
            student = load_student(self._arms[name], self._device, self._base)
        self._loaded = name, student
        return student

    def _layer(self, name: str, layers: int) -> int:
        """Return the layer that is shown of an arm: its own distillation layer where it has one."""
        if self._recipe is None:
            return layers // 2
        file = self._arms.get(name, Path()) / "recipe.yaml"
        own = load_recipe(file).losses.layers if name in self._arms and file.is_file() else ()
        layer = self._recipe.losses.layers[0]
        return layer if layer in own or not own else min(own)
