"""The model hub: asked once, so that nothing is waited for in vain."""


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
