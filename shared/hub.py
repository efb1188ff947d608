"""The model hub: asked once, so that nothing is waited for in vain."""

from collections.abc import Sequence
from pathlib import Path


class NotFetchedError(Exception):
    """Why the hub gave nothing, in one line."""


def snapshot(place: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return the local folder of a hub id's files that match `patterns`, fetched where need be.

    Raises
    ------
    NotFetchedError
        The hub does not answer and its cache lacks them, or it refuses.
    """
    from huggingface_hub import snapshot_download

    # Of the hub library's own HTTP client.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    answers = offline_if_unreachable()
    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=list(patterns)))
    except (HTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        reason = said if answers else "it does not answer, and its cache lacks it"
        raise NotFetchedError(reason) from None


def offline_if_unreachable() -> bool:
    """Let the hub's library work from its cache alone where the hub does not answer.

    Else it tries again for a minute what cannot succeed. Return whether the hub answers.
    """
    from huggingface_hub import constants, get_session

    # Of the hub library's own HTTP client.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except (HTTPError, OSError):
        constants.HF_HUB_OFFLINE = True
        return False
    return True
