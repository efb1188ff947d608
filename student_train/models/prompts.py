r"""From a conversation to token ids.

Labels, image positions and the question rows behind each image.

Text is tokenised in pieces, as the published models do it: the prompt is cut at every `<image>`,
each piece is tokenised on its own (only the first keeps a beginning-of-sequence token) and the
image's ids go between. Tokenising the whole string with `<image>` as a special token gives other
ids under sentencepiece (the text after an image would lose its leading "▁"). Positions come from
the ids, never from a constant: with the published tokenizers the image starts at 34 under
`vicuna_v1` (LLaVA-Med-1.5) and at 33 under `huatuo_v1` (HuatuoGPT-Vision).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import UserError
from shared.records import IMAGE_MARK, Turn, front_images, strip_marks
from shared.vocabulary import Truncation
from student_train.imagetext import Tokenizer
from student_train.models.templates import Template

IGNORED = -100  # the label that the language-model loss leaves out


class Span(NamedTuple):
    """Token positions `start` to `end - 1`."""

    start: int
    end: int


class Encoded(NamedTuple):
    """One conversation as ids.

    Attributes
    ----------
    input_ids
        (T,) with `image_token_id` repeated at every image.
    labels
        (T,) the ids of the answers and their end tokens; `IGNORED` elsewhere.
    images
        One span an image, in order.
    questions
        For every image the spans of its question rows: all text after it that is no answer (and no
        other image). Empty where no text follows the image.
    """

    input_ids: list[int]
    labels: list[int]
    images: list[Span]
    questions: list[list[Span]]


def encode_conversation(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: Tokenizer,
    image_tokens_per_image: int,
    image_token_id: int,
    max_length: int | None = None,
    truncation: Truncation = "error",
    *,
    system: str = "",
) -> Encoded:
    """Encode a conversation for training: labels on the answers and their end tokens alone.

    Parameters
    ----------
    turns
        Human and gpt in alternation, human first and gpt last; `<image>` marks move to the front of
        their turn.
    image_tokens_per_image
        N, the patches of one image.
    max_length
        The most tokens allowed, image tokens included.
    truncation
        What happens beyond it: `error`, or `answer`, which cuts the end of the last answer (its end
        token goes too, so that the model does not learn to stop there). Images, questions and other
        answers are never cut.
    system
        The conversation's own system message, never learned; where empty, the template's.

    Raises
    ------
    UserError
        A conversation without an answer, an empty answer, a special token inside the text, too many
        tokens; a system message for which the template has no place.
    """
    if not turns or turns[-1].role != "gpt":
        raise UserError("the conversation ends without an answer; nothing could be learned from it")
    if any(turn.role == "gpt" and not turn.text.strip() for turn in turns):
        raise UserError("an answer is empty; remove the record or fill it in")
    encoded, last_answer = _encode(
        turns, _told(template, system, tokenizer), tokenizer, image_tokens_per_image, image_token_id
    )
    if max_length is None or len(encoded.input_ids) <= max_length:
        return encoded
    if truncation == "answer" and max_length > last_answer.start:
        return _cut(encoded, max_length)
    total, images = len(encoded.input_ids), sum(span.end - span.start for span in encoded.images)
    answer = last_answer.end - last_answer.start
    fits = (
        ""
        if max_length <= last_answer.start
        else " or set data.truncation=answer to cut the end of the answer"
    )
    raise UserError(
        f"{total} tokens ({images} of images, {total - images - answer} of text before the last "
        f"answer, {answer} of "
        f"the answer) do not fit data.max_length={max_length}; raise it{fits}"
    )


def encode_prompt(
    question: str | Sequence[Turn],
    template: Template,
    tokenizer: Tokenizer,
    image_tokens_per_image: int,
    image_token_id: int,
    *,
    images: int | None = None,
    system: str = "",
    instruction: str | None = None,
) -> Encoded:
    """Encode the prompt for an answer.

    It ends after the template's opening of one, and nothing is labelled.

    Parameters
    ----------
    question
        The text of one question, or turns that end with a question.
    images
        How many images a plain question is about: it gets that many `<image>` marks in front. By
        default the marks in the text count.
    system
        The conversation's own system message; where empty, the template's.
    instruction
        Stands in the place of the system message; where there is none, before the text of the first
        question.
    """
    if isinstance(question, str):
        question = [Turn("human", front_images(question, images))]
    elif images is not None and sum(turn.text.count(IMAGE_MARK) for turn in question) != images:
        raise UserError(
            f"the turns hold another number of {IMAGE_MARK} marks than the {images} images given"
        )
    if not question or question[-1].role != "human":
        raise UserError("a generation prompt must end with a question")
    template = _told(template, system, tokenizer)
    if instruction is not None:
        template, question = _instructed(template, question, instruction)
    encoded = _encode(question, template, tokenizer, image_tokens_per_image, image_token_id)[0]
    return encoded._replace(labels=[IGNORED] * len(encoded.labels))


def _instructed(
    template: Template, turns: Sequence[Turn], instruction: str
) -> tuple[Template, Sequence[Turn]]:
    if template.system:
        return template.telling(instruction), turns
    first, *others = turns
    marks = IMAGE_MARK * first.text.count(IMAGE_MARK)
    text = f"{marks}{instruction} {strip_marks(first.text).strip()}"
    return template, [Turn(first.role, text), *others]


def _told(template: Template, system: str, tokenizer: Tokenizer) -> Template:
    """Return the template with a conversation's own system message, where it has one."""
    text = system.strip()
    if not text:
        return template
    if IMAGE_MARK in text:
        raise UserError(f"a system message shows no image: take {IMAGE_MARK} out of {text[:40]!r}")
    _refuse_special_tokens(text, tokenizer)
    return template.telling(text)


class _Piece(NamedTuple):
    text: str
    answer: bool


def _pieces(turns: Sequence[Turn], template: Template) -> list[_Piece]:
    pieces = [_Piece(template.start, False)]
    for position, turn in enumerate(turns):
        if turn.role != ("gpt" if position % 2 else "human"):
            raise UserError("the turns of a conversation alternate, human first")
        text = strip_marks(turn.text).strip()
        if turn.role == "human":
            between = template.between if position else ""
            ahead = "" if position else template.ahead
            question = _question(ahead, text, turn.text.count(IMAGE_MARK), template)
            pieces.append(_Piece(between + question, False))
        else:
            pieces.append(_Piece(template.gap + text + template.end, True))
    return pieces


def _question(ahead: str, text: str, images: int, template: Template) -> str:
    form = template.human if images or template.plain is None else template.plain
    said = ahead + (template.image * images + text).rstrip()
    return form.replace("{}", said, 1) + template.opening


def _chunks(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Cut the pieces at every image mark: the images go between the chunks."""
    chunks: list[list[_Piece]] = [[]]
    for piece in pieces:
        if piece.answer:
            chunks[-1].append(piece)
            continue
        first, *others = piece.text.split(IMAGE_MARK)
        chunks[-1].append(_Piece(first, False))
        chunks += [[_Piece(text, False)] for text in others]
    return chunks


def _encode(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: Tokenizer,
    image_tokens: int,
    image_token_id: int,
) -> tuple[Encoded, Span]:
    """Return the encoded turns and the span of the last answer."""
    for turn in turns:
        _refuse_special_tokens(turn.text.replace(IMAGE_MARK, ""), tokenizer)
    ids: list[int] = []
    answer: list[bool] = []
    images: list[Span] = []
    last_answer = Span(0, 0)
    for number, chunk in enumerate(_chunks(_pieces(turns, template))):
        if number:
            images.append(Span(len(ids), len(ids) + image_tokens))
            ids += [image_token_id] * image_tokens
            answer += [False] * image_tokens
        chunk_ids, ends = _tokenize(chunk, tokenizer, first=number == 0)
        begin = 0
        for piece, end in zip(chunk, ends, strict=True):
            if piece.answer:
                last_answer = Span(len(ids) + begin, len(ids) + end)
            answer += [piece.answer] * (end - begin)
            begin = end
        ids += chunk_ids
    labels = [token if learned else IGNORED for token, learned in zip(ids, answer, strict=True)]
    return Encoded(ids, labels, images, _question_rows(answer, images)), last_answer


def _tokenize(
    chunk: Sequence[_Piece], tokenizer: Tokenizer, first: bool
) -> tuple[list[int], list[int]]:
    """Tokenise a chunk as one string and find where each of its pieces ends.

    A piece ends where the ids of the text up to it stop agreeing with those of the whole: a token
    that spans the border depends on the later piece and is counted to it. No token spans a special
    token, so only the text since the last one is tokenised again: a conversation of many turns
    costs what its length says.
    """
    text = "".join(piece.text for piece in chunk)
    whole: list[int] = tokenizer(text, add_special_tokens=first).input_ids
    borders = _borders(text, whole, tokenizer)
    ends, end, near = [], 0, 0
    for piece in chunk[:-1]:
        end += len(piece.text)
        while near + 1 < len(borders) and borders[near + 1].end <= end:
            near += 1
        start, _, place = borders[near]
        head = tokenizer(text[start:end], add_special_tokens=first and start == 0).input_ids
        ends.append(place + _agreeing(head, whole, place))
    return whole, [*ends, len(whole)]


class _Border(NamedTuple):
    """A special token: `start` to `end` of the text, and its place among the ids."""

    start: int
    end: int
    place: int


def _borders(text: str, whole: Sequence[int], tokenizer: Tokenizer) -> list[_Border]:
    """Find the special tokens of a text among its ids, after the text's own beginning."""
    begin = _Border(0, 0, 0)
    kept = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    specials = sorted(kept, key=len, reverse=True)
    found = list(re.finditer("|".join(map(re.escape, specials)), text)) if specials else []
    ids = {tokenizer.convert_tokens_to_ids(one.group()) for one in found}
    places = [place for place, token in enumerate(whole) if token in ids]
    places = places[len(places) - len(found) :]  # one more where the sequence begins with one
    spelled = [tokenizer.convert_tokens_to_ids(one.group()) for one in found]
    if [whole[place] for place in places] != spelled:
        return [begin]  # a tokenizer that does not keep them whole
    return [
        begin,
        *(_Border(*one.span(), place) for one, place in zip(found, places, strict=True)),
    ]


def _agreeing(head: Sequence[int], whole: Sequence[int], place: int) -> int:
    """Count how many of `head` are those of `whole` from `place` on."""
    same = 0
    while same < min(len(head), len(whole) - place) and head[same] == whole[place + same]:
        same += 1
    return same


def _refuse_special_tokens(text: str, tokenizer: Tokenizer) -> None:
    """Text that spells a special token would be read as one: an end of the answer, or an image."""
    for token in tokenizer.all_special_tokens:
        if token in text:
            raise UserError(
                f"the text {text.strip()[:60]!r} contains the tokenizer's special token {token}"
            )


def _question_rows(answer: Sequence[bool], images: Sequence[Span]) -> list[list[Span]]:
    is_row = [not learned for learned in answer]
    for span in images:
        is_row[span.start : span.end] = [False] * (span.end - span.start)
    return [_spans(is_row, span.end) for span in images]


def _spans(flags: Sequence[bool], begin: int) -> list[Span]:
    """Return the runs of true flags from `begin` on."""
    spans, start = [], None
    for position in range(begin, len(flags)):
        if flags[position] and start is None:
            start = position
        elif not flags[position] and start is not None:
            spans.append(Span(start, position))
            start = None
    return spans if start is None else [*spans, Span(start, len(flags))]


def _cut(encoded: Encoded, length: int) -> Encoded:
    """Cut inside the last answer: nothing but answer ids lies beyond `length`."""
    return encoded._replace(input_ids=encoded.input_ids[:length], labels=encoded.labels[:length])
