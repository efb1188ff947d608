"""A tokenizer with the ids of the checkpoint's own sentencepiece file.

transformers 5 makes a byte-pair encoding of `tokenizer.model` whose ids differ on runs of blanks:
it orders merges of one score by length, and writes no blank before a text that begins with one.
Sentencepiece joins the leftmost of the best pairs, and always writes it (its dummy prefix).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from shared.errors import UserError
from student_train.imagetext import Tokenizer
from student_train.models.pretrained import PartClass, load_part

MODEL_FILE = "tokenizer.model"
BLANK = "\u2581"  # sentencepiece's blank

# What reports hold and what tokenizers differ on.
PROBES = (
    "",
    " ",
    "A chat between a curious user and an artificial intelligence assistant. USER: ",
    "FINDINGS:  The heart is normal.   No effusion.",
    " leading and trailing ",
    "\n\nIMPRESSION:\n  1.  none\n\t2.\tsome",
    "3\u00a0cm,\u00a0\u00a0 5\u2009mm \u2264 7 \u00b5m",
    "\U0001f600  \U0001fac1\ufe0f caf\u00e9 cafe\u0301 \u80ba\u708e",
    "---------- ======= ....... ______ \r\n" + " " * 7 + "x" + " " * 40 + "y",
    BLANK + " written out",
)


@runtime_checkable
class Pieces(Protocol):
    """What is used of a `SentencePieceProcessor`."""

    def get_piece_size(self) -> int:
        """Count the pieces."""
        ...

    def id_to_piece(self, id: int) -> str:
        """Return a piece."""
        ...

    def get_score(self, id: int) -> float:
        """Return a piece's score; the pair that makes the piece of the highest is joined first."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return a text's ids."""
        ...


def piece_tokenizer(tokenizer_class: PartClass[Tokenizer], folder: Path) -> Tokenizer:
    """Load the tokenizer of a folder; where that has a sentencepiece file, with the file's ids.

    Raises
    ------
    UserError
        No usable tokenizer; ids that differ from those of the sentencepiece file.
    """
    from transformers import PreTrainedTokenizerFast

    loaded = load_part(tokenizer_class, folder, "tokenizer")
    if not (folder / MODEL_FILE).is_file():
        return loaded
    pieces = _read(folder / MODEL_FILE)
    # Another class would build its own merges again when a saved folder is read.
    tokenizer: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_pieces(getattr(loaded, "backend_tokenizer"), pieces),  # noqa: B009
        **{
            name: value
            for name in ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
            if (value := getattr(loaded, name)) is not None
        },
        padding_side=getattr(loaded, "padding_side"),  # noqa: B009
        clean_up_tokenization_spaces=False,
    )
    check_pieces(tokenizer, pieces, folder)
    return tokenizer


def check_pieces(tokenizer: Tokenizer, pieces: Pieces, folder: Path) -> None:
    """Raise a `UserError` where a tokenizer's ids are not those of the sentencepiece file."""
    for text in PROBES:
        found = tokenizer(text, add_special_tokens=False).input_ids
        expected = pieces.encode(text)
        if found != expected:
            raise UserError(
                f"{folder}: the text {text[:60]!r} becomes {_shown(tokenizer, found)}, but "
                f"{MODEL_FILE} says {_shown(tokenizer, expected)}; copy all tokenizer files again "
                "from the model's own folder"
            )


def _shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return " ".join(str(tokenizer.convert_ids_to_tokens(one)) for one in ids[:20])


def _read(path: Path) -> Pieces:
    from sentencepiece import SentencePieceProcessor

    try:
        pieces: Pieces = SentencePieceProcessor(str(path))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no sentencepiece model ({reason}); copy it again") from None
    return pieces


def _with_pieces(backend: object, pieces: Pieces) -> object:
    """Return the tokenizers object with the merges of the pieces, and a blank before every text."""
    import json

    from tokenizers import Tokenizer as Backend

    described = json.loads(str(getattr(backend, "to_str")()))  # noqa: B009
    described["model"]["merges"] = merges(
        {
            pieces.id_to_piece(number): pieces.get_score(number)
            for number in range(pieces.get_piece_size())
        }
    )
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    described["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": BLANK}, blank],
    }
    described["pre_tokenizer"] = None
    return Backend.from_str(json.dumps(described))


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the pairs that make a piece, in the order in which sentencepiece joins them.

    By the piece's score. Where several pieces have one score (those of blanks alone), the leftmost
    pair is next: a piece grows from the left, so the pair with the longest left part comes first.
    """
    found = [
        (-score, -cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]
