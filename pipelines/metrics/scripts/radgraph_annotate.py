"""Annotate reports with RadGraph, in an environment of its own.

It has radgraph 0.1.18 and transformers < 5.

Standard input: {"texts": [...], "model_type": "radgraph", "folder": DIR or null}; with a folder,
DIR/radgraph/ holds the unpacked model and nothing is downloaded. Last line of standard output:
MEDALIGN-ANSWER {"annotations"}.
"""

import json
import sys
from typing import TypedDict


class Request(TypedDict):
    """What standard input asks for."""

    texts: list[str]
    model_type: str
    folder: str | None


def main() -> None:
    """Read the request, annotate each text, write the answer."""
    from radgraph import RadGraph

    request: Request = json.load(sys.stdin)
    options = {} if request["folder"] is None else {"model_cache_dir": request["folder"]}
    model = RadGraph(model_type=request["model_type"], **options)
    found = model(request["texts"]) if request["texts"] else {}
    annotations = [found[str(number)]["entities"] for number in range(len(request["texts"]))]
    sys.stdout.write("\nMEDALIGN-ANSWER " + json.dumps({"annotations": annotations}) + "\n")


if __name__ == "__main__":
    main()
