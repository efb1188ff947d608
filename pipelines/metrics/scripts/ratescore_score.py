"""Score reports with RaTEScore, in an environment of its own (its medspacy needs numpy 1).

Standard input: {"pairs": [[reference, prediction], ...], "ner": FOLDER or id, "encoder": FOLDER or id}. Last line of
standard output: MEDALIGN-ANSWER {"scores"}.
"""

import json
import sys


def main() -> None:
    """Read the request, score each pair, write the answer."""
    import torch
    from RaTEScore import RaTEScore

    request = json.load(sys.stdin)
    scorer = RaTEScore(bert_model=request["ner"], eval_model=request["encoder"], use_gpu=torch.cuda.is_available())
    scores = []
    # One pair a call: in a list, a report without a sentence would shift all that follow it. Such a pair has no
    # entities, for which the package's score is 0.5.
    for reference, prediction in request["pairs"]:
        values = scorer.compute_score([prediction], [reference])
        scores.append(float(values[0]) if values else 0.5)
    sys.stdout.write("\nMEDALIGN-ANSWER " + json.dumps({"scores": scores}) + "\n")


if __name__ == "__main__":
    main()
