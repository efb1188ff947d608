"""Score reports with GREEN, in an environment of its own.

Standard input: {"pairs": [[reference, prediction], ...], "model": FOLDER}. Last line of standard
output: MEDALIGN-ANSWER {"scores"}, None where the model's judgement cannot be read.
"""

import json
import sys
import tempfile


def main() -> None:
    """Read the request, let the model judge each pair, write the answer."""
    from green_score import GREEN

    request = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        scorer = GREEN(request["model"], output_dir=folder)
        # One pair a call: the package takes a mean over the pairs, which one unreadable judgement
        # would end.
        scores = []
        for reference, prediction in request["pairs"]:
            try:
                value = scorer([reference], [prediction])[2][0]
            except TypeError:
                value = None
            scores.append(None if value is None else float(value))
    sys.stdout.write("\nMEDALIGN-ANSWER " + json.dumps({"scores": scores}) + "\n")


if __name__ == "__main__":
    main()
