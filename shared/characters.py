"""Text that no file and no tokenizer takes: half of a character, as a cut emoji leaves it."""

from collections.abc import Iterator


def broken_text(value: object) -> str | None:
    """Return the first text in a JSON value that holds a lone surrogate; None where all is whole.

    JSON writes a character beyond the first 65,536 as two halves; an export that cuts a text
    between them leaves one, which UTF-8 cannot write.
    """
    return next((text for text in _texts(value) if not _is_whole(text)), None)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(name)
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _is_whole(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
