"""Where a study's run spends its time: `python -m benchmarks.study_run RUN`, an adapter folder.

Processor seconds on one thread, so that other work on the machine counts little. Rows:

- what a training step would save if the frozen vision tower's features were kept (tower forward
  over a step's forward and backward), and if images were read in no time;
- matrix products of the shape of the decoder's MLP: the library that torch calls (MKL), oneDNN,
  and bfloat16;
- a pass that ends at layer l over the whole one, as `medalign alignment` observes;
- the digest of the weights over that pass.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.evaluation.loading import load_student, weights_digest
from pipelines.evaluation.observed import observe
from shared.recipe import load_recipe
from shared.records import image_root_of, load_records


def seconds(work: Callable[[], Any], times: int) -> float:
    """Median processor seconds of a call, after one that does not count."""
    work()
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return median(found)


def products(rows: int, width: int, inner: int, times: int) -> None:
    x, w = torch.randn(rows, width), torch.randn(inner, width)
    half_x, half_w = x.bfloat16(), w.bfloat16()
    linear, one_dnn = torch.nn.functional.linear, torch.ops.mkldnn._linear_pointwise
    found = {
        "MKL float32": seconds(lambda: linear(x, w), times),
        "oneDNN float32": seconds(lambda: one_dnn(x, w, None, "none", [], ""), times),
        "bfloat16": seconds(lambda: linear(half_x, half_w), times),
    }
    for name, one in found.items():
        rate = 2 * rows * width * inner / one / 1e9
        print(f"{name:<16} {rate:6.0f} GFLOP/s, {found['MKL float32'] / one:.2f} of MKL's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--times", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(given.run / "recipe.yaml")
    student = load_student(given.run, "cpu", named=False)
    model: Any = student.model
    file = str(recipe.evaluation.data)
    root = image_root_of(file, recipe.evaluation.image_root)
    chosen = [one for one in load_records(file) if len(one.images) == 1][: recipe.train.batch_size]
    references = [one.references(root)[0] for one in chosen]

    inputs = student.processor.encode([one.question for one in chosen], [[r] for r in references])
    decoder = model.get_decoder()
    for parameter in decoder.layers[0].parameters():
        parameter.requires_grad_(True)

    def step() -> None:
        model(**inputs, logits_to_keep=1, use_cache=False).logits.sum().backward()

    def tower() -> None:
        with torch.no_grad():
            model.model.get_image_features(inputs["pixel_values"])

    whole = seconds(step, given.times)
    shares = {
        "tower": seconds(tower, given.times),
        "images": seconds(lambda: [student.processor.reader(one) for one in references], 3),
    }
    for name, one in shares.items():
        print(f"{name:<16} {one / whole:6.1%} of a step of {len(chosen)} questions")
    config = decoder.config
    rows = inputs["input_ids"].numel()
    products(rows, config.hidden_size, int(config.to_dict()["intermediate_size"]), 40)

    layer, last = min(recipe.losses.layers), len(decoder.layers) - 1
    question, reference = chosen[0].question, references[0]

    def passes(to: int) -> float:
        return seconds(lambda: observe(student, question, [reference], [to]), given.times)

    half, full = passes(layer), passes(last)
    print(f"{'to layer l':<16} {half / full:6.2f} of a pass to layer {last}")
    print(f"{'digest':<16} {seconds(lambda: weights_digest(model), 3) / full:6.2f} of such a pass")


if __name__ == "__main__":
    main()
