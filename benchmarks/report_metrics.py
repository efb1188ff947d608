"""One pass of BLEU, ROUGE-L and METEOR over 1,000 pairs of reports.

CPU seconds, first without and then with the cache.

    OMP_NUM_THREADS=1 python benchmarks/report_metrics.py [PAIRS]

Reports are drawn with a seed from 40 sentences of chest radiography, four to eight a report; a
prediction keeps about half of its reference's sentences. METEOR runs where NLTK finds WordNet
(NLTK_DATA).
"""

import os
import random
import sys
import tempfile
import time

from pipelines.metrics.metric import Pair
from pipelines.metrics.reports import score_reports

FINDINGS = (
    "pleural effusion, pneumothorax, focal consolidation, pulmonary edema, acute fracture, free "
    "air, lung mass, nodule"
)
PLACES = "the left lower lobe, the right upper lobe, both lung bases, the left costophrenic angle"
SENTENCES = [
    *(f"There is no evidence of {finding}." for finding in FINDINGS.split(", ")),
    *(
        f"There is a small {finding} in {place}."
        for finding in FINDINGS.split(", ")[:6]
        for place in PLACES.split(", ")
    ),
    "The cardiomediastinal silhouette is within normal limits.",
    "Heart size is mildly enlarged, unchanged from the prior study.",
    "The lungs are hyperexpanded with flattened diaphragms.",
    "Degenerative changes are seen in the thoracic spine.",
    "Median sternotomy wires are intact.",
    "The endotracheal tube terminates 4.2 cm above the carina.",
    "Pulmonary vascularity appears normal.",
    "No acute cardiopulmonary abnormality.",
]


def draw_pairs(number: int) -> list[Pair]:
    draw = random.Random(0)
    pairs = []
    for _ in range(number):
        reference = draw.sample(SENTENCES, draw.randint(4, 8))
        prediction = [s if draw.random() < 0.5 else draw.choice(SENTENCES) for s in reference]
        pairs.append(Pair(" ".join(reference), " ".join(prediction)))
    return pairs


def main() -> None:
    pairs = draw_pairs(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    words = sum(len(pair.reference.split()) for pair in pairs) / len(pairs)
    print(f"{len(pairs)} pairs, {words:.0f} words a reference on average")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDALIGN_CACHE"] = folder
        for name in ("bleu", "rouge", "meteor"):
            seconds = []
            for _ in range(2):
                wall, start = time.perf_counter(), time.process_time()
                result = score_reports(pairs, names=[name])
                seconds.append((time.process_time() - start, time.perf_counter() - wall))
            if result["not_computed"]:
                print(f"{name}: not computed: {result['not_computed'][name]}")
                continue
            (first, first_wall), (second, _) = seconds
            shown = " ".join(
                f"{key} {100 * found['value']:.2f}" for key, found in result["scores"].items()
            )
            print(
                f"{name:7} {first:6.2f} s CPU ({first_wall:.1f} s wall), cached {second:.2f} s CPU "
                f"  {shown}"
            )


if __name__ == "__main__":
    main()
