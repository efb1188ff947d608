"""The model hub: asked once, so that nothing is waited for in vain."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]  # of a repository


class NotFetchedError(Exception):
    """Why the hub gave nothing, in one line."""


class NotUploadedError(Exception):
    """Why the hub took nothing, or not all, in one line."""


def upload(
    folder: Path,
    place: str,
    *,
    kind: Kind = "model",
    texts: Mapping[str, str] | None = None,
    wanted: Sequence[str] | None = None,
    unwanted: Sequence[str] = (),
) -> str:
    """Upload files of a folder to a repository of the hub, made private if it is not there.

    Parameters
    ----------
    texts
        Files besides, by their name there; they go first.
    wanted, unwanted
        Patterns of paths below the folder; None is all.

    Returns
    -------
    The repository's whole id: a bare name gets its owner.

    Raises
    ------
    NotUploadedError
        It does not answer, or refuses.
    """
    from huggingface_hub import HfApi

    # Of the hub library's own HTTP client.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    try:
        whole = api.create_repo(place, repo_type=kind, private=True, exist_ok=True).repo_id
        for name, text in (texts or {}).items():
            api.upload_file(
                path_or_fileobj=text.encode(), path_in_repo=name, repo_id=whole, repo_type=kind
            )
        api.upload_folder(
            folder_path=folder,
            repo_id=whole,
            repo_type=kind,
            allow_patterns=None if wanted is None else list(wanted),
            ignore_patterns=list(unwanted),
        )
    # The last two: a refused card, a file cut short.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise NotUploadedError(reason) from None
    return whole


def snapshot(
    place: str, patterns: Sequence[str], revision: str | None = None, kind: Kind = "model"
) -> Path:
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
        return Path(
            snapshot_download(
                place, repo_type=kind, revision=revision, allow_patterns=list(patterns)
            )
        )
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
