"""What a request of the chat endpoint asks for: its turns, images and settings, checked."""

import base64
import binascii
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from PIL.Image import Image

from shared.imaging.images import open_bytes
from shared.imaging.pixels import UnreadableImage
from shared.records import IMAGE_MARK, Turn, front_images

# What would change the answer and is not there, and the values that ask for nothing.
_MISSING: dict[str, tuple[object, ...]] = {
    "n": (1,), "tools": ([],), "functions": ([],), "logprobs": (False,), "logit_bias": ({},),
    "top_logprobs": (0,), "frequency_penalty": (0,), "presence_penalty": (0,), "audio": (),
    "response_format": ({"type": "text"},),
}  # fmt: skip
_STOPS = 4


class Refused(Exception):
    """A request that gets no answer: its status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Asked(NamedTuple):
    """One request: turns that end with a question, their images, and how to answer."""

    system: str  # empty: the template's stands
    turns: list[Turn]
    images: list[Image]
    item: str  # the question alone: names its random numbers, as in `chat`
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None  # None: any
    stop: tuple[str, ...]
    stream: bool
    usage: bool  # counted at the end of a stream too


def asked_of(
    body: object, model: str, most: int, max_pixels: int, decoding: str = "greedy"
) -> Asked:
    """Read a request's JSON.

    `model` is the name that is served, `most` the new tokens that a request may ask for and gets
    where it names none, `max_pixels` the pixels of one image, `decoding` the method that is served.

    Raises
    ------
    Refused
        The request is no chat request, asks for what is not there, or is beyond a limit.
    """
    if not isinstance(body, dict):
        raise _bad("the body is no JSON object")
    if body.get("model") != model:
        raise Refused(HTTPStatus.NOT_FOUND, f"no model {body.get('model')!r}; there is {model!r}")
    for key, nothing in _MISSING.items():
        if body.get(key) is not None and body[key] not in nothing:
            raise _bad(f"{key} is not supported; leave it out")
    if decoding != "greedy":
        for key in ("temperature", "top_p"):
            if body.get(key) is not None:
                raise _bad(f"this server decodes by {decoding} with settings of its own; no {key}")
    system, turns, images, item = _conversation(body.get("messages"), max_pixels)
    tokens = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    options = body.get("stream_options")
    return Asked(
        system,
        turns,
        images,
        item,
        int(_number(body, tokens, most, 1, most, whole=True)),
        _number(body, "temperature", 0.0, 0.0, 2.0),
        _number(body, "top_p", 1.0, 1e-6, 1.0),
        _seed(body),
        _stops(body.get("stop")),
        _flag(body.get("stream"), "stream"),
        isinstance(options, dict) and _flag(options.get("include_usage"), "include_usage"),
    )


def _bad(line: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, line)


def _flag(value: object, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{name} is true or false")
    return bool(value)


def _number(
    body: Mapping[str, Any], key: str, default: float, low: float, high: float, whole: bool = False
) -> float:
    value = body.get(key)
    if value is None:
        return default
    sound = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not sound or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise _bad(f"{key} is {kind} of {low:g} to {high:g}")
    found: float = value  # an int stays one: a seed has more digits than a float
    return found


def _seed(body: Mapping[str, Any]) -> int | None:
    if body.get("seed") is None:
        return None
    return int(_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True))


def _stops(value: object) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise _bad("stop is a text, or a list of texts, none empty")
    if len(found) > _STOPS:
        raise _bad(f"stop lists {len(found)} texts; {_STOPS} at most")
    return tuple(found)


def _conversation(messages: object, max_pixels: int) -> tuple[str, list[Turn], list[Image], str]:
    if not isinstance(messages, list) or not messages:
        raise _bad("messages is a list of one message at least")
    turns: list[Turn] = []
    images: list[Image] = []
    system = words = ""
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise _bad("the role of a message is system, user or assistant")
        words, shown = _content(message.get("content"), max_pixels)
        if role != "user" and shown:
            raise _bad("only a user's message shows images")
        if role in ("system", "developer"):
            if place:
                raise _bad("a system message is the first one, and there is one at most")
            system = words
            continue
        asks = role == "user"
        turns.append(Turn("human", front_images(words, len(shown))) if asks else Turn("gpt", words))
        images += shown
    if not turns or turns[-1].role != "human":
        raise _bad("the last message is the user's: there is nothing to answer")
    return system, turns, images, words


def _content(content: object, max_pixels: int) -> tuple[str, list[Image]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise _bad("the content of a message is a text, or a list of parts")
    texts: list[str] = []
    images: list[Image] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"].replace(IMAGE_MARK, " "))
        elif kind == "image_url":
            given = part.get("image_url")
            images.append(
                _image(given.get("url") if isinstance(given, dict) else given, max_pixels)
            )
        else:
            raise _bad('a part is {"type": "text", "text"} or {"type": "image_url", "image_url"}')
    return "\n".join(texts).strip(), images


def _image(url: object, max_pixels: int) -> Image:
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if head.partition(":")[0].lower() in ("http", "https"):
        raise _bad("this server fetches nothing from a network; send the image as a data URL")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise _bad("an image is a data URL: data:image/png;base64,...")
    try:
        return open_bytes(base64.b64decode(data, validate=True), max_pixels=max_pixels)
    except binascii.Error:
        raise _bad("the data URL of an image is not base64") from None
    except UnreadableImage as error:
        raise _bad(f"an image cannot be read: {error}") from None
