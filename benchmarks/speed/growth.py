"""What a clip costs in a large collection over what it costs in a small one: `results/performance/growth.json`.

    python benchmarks/speed/growth.py --work DIR

Among 100,000 clips over among 1,000: reading a training batch, and the twenty nearest, by item of the gallery. The row
is that of the worse of the two. `--work` is that of `loading.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from avdistill.dataset.batches import TrainingBatches
from avdistill.search.knn import top_k_neighbors
from loading import batches_of, many
from measuring import Row, in_turn, measure, within

LARGE, SMALL, WIDTH = 100_000, 1_000, 512


def loading(work: Path) -> list[float]:
    """Ratios of the seconds of thirty batches; new ones of the large dataset in every round."""
    large, small = (batches_of(many(work, clips)) for clips in (LARGE, SMALL))

    def read(data: TrainingBatches, first: int) -> float:
        began = time.perf_counter()
        for number in range(first, first + 30):
            data[number]
        return time.perf_counter() - began

    rng = np.random.default_rng(0)
    ratios = []
    for round_ in range(10):
        first = int(rng.integers(3000))
        a, b = read(large, first), read(small, 0)
        if round_:
            ratios.append(a / b)
    return ratios


def retrieval() -> list[float]:
    """Ratios of the seconds per gallery item."""
    generator = torch.Generator().manual_seed(0)
    queries, large = (torch.randn(n, WIDTH, generator=generator) for n in (1024, LARGE))
    small = large[:SMALL]

    def many_times() -> None:
        for _ in range(LARGE // SMALL):
            top_k_neighbors(queries=queries, gallery=small, k=20)

    return [a / b for a, b in in_turn(lambda: top_k_neighbors(queries=queries, gallery=large, k=20), many_times)]


def growth(work: Path) -> Row:
    """At most 1.2."""
    ratios = {"loading": loading(work), "retrieval": retrieval()}
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    worse = max(medians, key=lambda name: medians[name])
    return within("flat_growth", 1.2, ratios[worse], of=worse, medians=medians)


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description="cost of a clip among many: results/performance/growth.json")
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    measure("growth", {"flat_growth": lambda: growth(work)}, [])


if __name__ == "__main__":
    main()
