"""A store's own array `query`, asked in the words of its teacher's text tower.

B images, n texts, N patches of the grid, c text width, r rank.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.maps import normalised
from shared.targets.numbers.query import NAMES, basis_of, query_maps
from shared.targets.texts import embeddings, text_key, texts_of

FEW = 0.5  # share of a text's energy outside the basis from which on its map says little


class Stored:
    """Asks a store that was built with `--query`; without its teacher where it keeps the prompts.

    Raises
    ------
    UserError
        The store cannot be asked.
    """

    def __init__(
        self, store: TargetStore, weights: str | None = None, tokenizer: str | None = None
    ) -> None:
        query = store.identity.query
        if query is None:
            raise UserError(
                f"{store.namespace.name} keeps nothing to ask: build with --query, or give the "
                "--query FILE of `cache query fit` for a store of `patches`"
            )
        self._store, self._query = store, query
        self._weights, self._tokenizer = weights, tokenizer
        self._basis = basis_of(store.namespace.provenance).astype(np.float64)
        self._known: dict[str, Float[np.ndarray, " c"]] = {}

    def maps(self, keys: Sequence[bytes], texts: Sequence[str]) -> Float[np.ndarray, "B n N"]:
        """Return the maps of images for texts, not negative, 0 where a patch is padding alone.

        Raises
        ------
        UserError
            No embedding of a text can be had.
        """
        asked = self._vectors(texts) @ self._basis
        stored, grid = self._store.arrays(keys, NAMES), self._store.grid
        found = query_maps(stored, asked, self._query.grid, grid)
        covered = self._store.coverage(keys) > 0
        return np.where(covered[:, None], found, 0.0)

    def outside(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Return the share of each text's energy that lies outside the basis, [0, 1]."""
        from teacher_cache.texts.basis import residuals

        return residuals(self._basis, self._vectors(texts))

    def _vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        said = [normalised(text) for text in texts]
        wanted = [text for text in dict.fromkeys(said) if text not in self._known]
        kept = texts_of(self._store.namespace.storage, self._query.text)
        there = [text for text in wanted if kept is not None and text_key(text) in kept]
        if kept is not None and there:
            self._known |= zip(there, embeddings(kept, there), strict=True)
        absent = [text for text in wanted if text not in self._known]
        if absent:
            self._known |= zip(absent, self._embedded(absent), strict=True)
        return np.stack([self._known[text] for text in said]).astype(np.float64)

    def _embedded(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Embed texts by the text tower of the store's teacher, which has to be at hand."""
        from teacher_cache.settings import settings_of
        from teacher_cache.texts.towers import embed, load_text_tower

        identity = self._store.identity
        said = settings_of(identity).trained
        try:
            tower = load_text_tower(identity.teacher, self._weights, self._tokenizer, said)
        except UserError as error:
            raise UserError(
                f"{self._store.namespace.storage.location} keeps no embedding of {texts[0]!r}, and "
                f"the text tower cannot be loaded ({error}); `cache text` writes embeddings, "
                "--weights loads the tower"
            ) from None
        if tower.weights != self._query.text:
            raise UserError(
                f"these weights of {identity.teacher} have another text tower than "
                f"{self._store.namespace.name} was built with: pass the store's own as --weights"
            )
        return embed(tower, texts)
