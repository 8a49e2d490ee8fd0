"""Speed of retrieval: `results/performance/retrieval.json`.

    python benchmarks/speed/retrieval.py [retrieval_loop ...]

Metrics of 1,944 queries in a gallery of 4,892, the size of UCF51, against the bare matrix products and against a loop
over queries; and the twenty nearest among 100,000 against the bare products, in time and memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import baseline
from avdistill.evaluation.retrieval_metrics import retrieval_metrics
from avdistill.search.knn import nearest_units, top_k_neighbors
from measuring import Row, against, in_turn, measure, seconds, within

WIDTH, BLOCK = 512, 1024
HERE = Path(__file__).parent
MEMORY = """
import torch
from avdistill.search.knn import top_k_neighbors
from measuring import peak_bytes, resident_bytes
queries, gallery = torch.randn(8192, 512), torch.randn(100_000, 512)
before = resident_bytes()
top_k_neighbors(queries=queries, gallery=gallery, k=20)
print(peak_bytes() - before)
"""


def loop() -> Row:
    """hit@k and mAP, the same metrics: how near they are to the speed of the products that nothing can avoid."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(51, (1944 + 4892,), generator=generator)
    centers = torch.randn(51, WIDTH, generator=generator)
    both = centers[labels] + 3 * torch.randn(len(labels), WIDTH, generator=generator)
    queries, gallery, query_labels, gallery_labels = both[:1944], both[1944:], labels[:1944], labels[1944:]
    arrays = [each.numpy() for each in (queries, gallery, query_labels, gallery_labels)]

    def ours() -> dict[str, float]:
        metrics = retrieval_metrics(
            queries=queries, gallery=gallery, query_labels=query_labels, gallery_labels=gallery_labels
        )
        return metrics.to_dict()

    expected, found = baseline.retrieval(*arrays), ours()
    for name, value in expected.items():
        if abs(found[name] - value) > 1e-3:
            raise SystemExit(f"{name}: {found[name]} and {value} are not the same figure")
    looped = statistics.median(seconds(lambda: baseline.retrieval(*arrays)) for _ in range(3))
    row = against("retrieval_loop", 0.6, ours, products(queries, gallery), repeats=15, loop_seconds=looped)
    return row | {"against_loop": looped / row["ours_seconds"]}


def products(queries: torch.Tensor, gallery: torch.Tensor) -> Callable[[], object]:
    """The bare matrix products, block by block, nothing kept."""
    transposed = gallery.T

    def multiply() -> None:
        for part in queries.split(BLOCK):
            part @ transposed

    return multiply


def of_100k() -> Row:
    """The twenty nearest among 100,000, at most 1.5 times as long as the products and 2 GB more.

    8,192 queries stand for 100,000: every block of them costs the same, and what is done once per gallery weighs more.
    """
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, WIDTH, generator=generator) for n in (8192, 100_000))
    pairs = in_turn(lambda: top_k_neighbors(queries=queries, gallery=gallery, k=20), products(queries, gallery))
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=HERE, check=True, capture_output=True, text=True)
    extra = json.loads(done.stdout)
    worst = [max(a / b / 1.5, extra / 2e9) for a, b in pairs]
    told = {"limits": {"times": 1.5, "bytes": 2e9}, "times": [round(a / b, 3) for a, b in pairs], "bytes": extra}
    return within("retrieval_100k", 1.0, worst, **told)


def search_1m() -> Row:
    """One exact search among a million clips over the bare product, which reads 2 GB: at most 1.2."""
    gallery = np.random.default_rng(0).standard_normal((1_000_000, WIDTH), dtype=np.float32)
    for part in np.array_split(gallery, 100):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    query, used = gallery[:1].copy(), np.ones(len(gallery), bool)
    pairs = in_turn(lambda: nearest_units(query, gallery, 10, used), lambda: gallery @ query[0], repeats=9)
    return within("search_1m", 1.2, [a / b for a, b in pairs], product_seconds=statistics.median(b for _, b in pairs))


MEASURES = {"retrieval_loop": loop, "retrieval_100k": of_100k, "search_1m": search_1m}


def main() -> None:
    """Those named, or all."""
    measure("retrieval", MEASURES, sys.argv[1:])


if __name__ == "__main__":
    main()
