"""Score reports with RaTEScore, in an environment of its own (its medspacy needs numpy 1).

Standard input: {"pairs": [[reference, prediction], ...], "ner": FOLDER or id, "encoder": FOLDER or
id}. Last line of standard output: MEDALIGN-ANSWER {"scores"}.
"""

import json
import sys
from typing import TypedDict


class Request(TypedDict):
    """What standard input asks for."""

    pairs: list[tuple[str, str]]
    ner: str
    encoder: str


def main() -> None:
    """Read the request, score each pair, write the answer."""
    import torch
    from RaTEScore import RaTEScore
    from RaTEScore.utils import sentence_split

    request: Request = json.load(sys.stdin)
    scorer = RaTEScore(
        bert_model=request["ner"], eval_model=request["encoder"], use_gpu=torch.cuda.is_available()
    )
    scores: list[float] = []
    # One pair a call, and never a report without a sentence: in a list it would shift all that
    # follow it, alone it is an error. It has no entities, for which the package's score is 0.5.
    for reference, prediction in request["pairs"]:
        spoken = all(sentence_split([text])[0] for text in (reference, prediction))
        scores.append(float(scorer.compute_score([prediction], [reference])[0]) if spoken else 0.5)
    sys.stdout.write("\nMEDALIGN-ANSWER " + json.dumps({"scores": scores}) + "\n")


if __name__ == "__main__":
    main()
