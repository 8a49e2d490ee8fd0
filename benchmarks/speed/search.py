"""Search in a million clips: `results/performance/search.json`.

    python benchmarks/speed/search.py [--clips 1000000] [--folder DIR] [--out FILE]

The exact form and LanceDB, as `avdistill index` makes them, beside faiss (flat, and IVF without compression), all in
one run and each in processes of its own: time, memory and disk of making the index, then latency of single queries, and
how many of the ten nearest are found (recall@10 against the exact form). Needs about 10 GB of disk and 8 GB of memory,
and faiss-cpu, which nothing else uses.

The vectors are made: a clip is a point near one of 1,000 centers in 64 dimensions, mapped to 512 non-negative numbers
as by a last layer with ReLU. Queries are further points of the same kind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import write_json
from avdistill.search.columns import Column, Content
from avdistill.search.exact import ExactIndex, write_exact
from avdistill.search.index import Index
from avdistill.search.lance import LanceIndex, write_lance
from avdistill.search.schema import INDEX_VERSION, IndexDescription, Source, Space
from measuring import RESULTS, machine, peak_bytes, resident_bytes

WIDTH, LATENT, CENTERS, QUERIES, K, LISTS, PROBES = 512, 64, 1000, 50, 10, 1024, 16
FORMS = ("exact", "lance", "faiss_flat", "faiss_ivf")
# A tenth of the clips meets it.
WHERE = "split = 'test'"


class ArrayColumn(Column):
    """Vectors of an array."""

    def __init__(self, space: Space, array: np.ndarray) -> None:
        super().__init__(space)
        self.array = array

    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        """Its rows."""
        return self.array[clips]


class Clips:
    """As many clips of a dataset that is not there."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def make_vectors(folder: Path, clips: int) -> None:
    """`vectors.npy` (clips, 512) and `queries.npy` (50, 512), float32."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CENTERS, LATENT), dtype=np.float32)
    layer = rng.standard_normal((LATENT, WIDTH), dtype=np.float32) / np.float32(LATENT**0.5)

    def points(count: int) -> np.ndarray:
        near = centers[rng.integers(CENTERS, size=count)] + 0.7 * rng.standard_normal((count, LATENT), dtype=np.float32)
        noise = 0.1 * rng.standard_normal((count, WIDTH), dtype=np.float32)
        rows: np.ndarray = np.maximum(near @ layer + noise, 0).astype(np.float32)
        return rows

    array = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (clips, WIDTH))
    for first in range(0, clips, 50_000):
        array[first : first + 50_000] = points(min(50_000, clips - first))
    array.flush()
    np.save(folder / "queries.npy", points(QUERIES))


def content(folder: Path) -> Content:
    """What an index of these vectors holds."""
    import pyarrow as pa

    array = np.load(folder / "vectors.npy", mmap_mode="r")
    N = len(array)
    rows = np.arange(N)
    missing = pa.nulls(N, pa.float64())
    table = pa.table(
        {
            "id": [f"clip_{i:07d}" for i in range(N)],
            "dataset": pa.array(["dataset"] * N),
            "split": pa.array(np.where(rows % 10 == 0, "test", "train")),
            "labels": pa.array([[f"class_{i % 100}"] for i in range(N)]),
            "labeled": pa.array([True] * N),
            "path": [f"{i // 5}.mp4" for i in range(N)],
            "group": [f"{i // 5}" for i in range(N)],
            "start_seconds": pa.array((rows % 5) * 10.0),
            "end_seconds": pa.array((rows % 5) * 10.0 + 10),
            **{name: pa.array([name != "silent"] * N) for name in ("has_video", "has_audio", "silent")},
            **dict.fromkeys(("mismatch_score", "mismatch_probability", "correspondence"), missing),
        }
    )
    space = Space("student", "video", WIDTH, "student", {"name": "made"})
    description = IndexDescription(INDEX_VERSION, (Source("dataset", str(folder), "made", {}, {}, N),), (space,))
    return Content(description, (Clips(N),), (ArrayColumn(space, array),), table)  # type: ignore[arg-type]


def unit(rows: np.ndarray) -> np.ndarray:
    """float32, of length 1."""
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def build(form: str, folder: Path) -> None:
    """Make an index, in this process."""
    target = folder / form
    if form in ("exact", "lance"):
        rows = content(folder)
        before, began = resident_bytes(), time.perf_counter()
        write_exact(rows, target) if form == "exact" else write_lance(rows, str(target))
    else:
        import faiss

        before, began = resident_bytes(), time.perf_counter()
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        index: Any = faiss.IndexFlatIP(WIDTH)
        if form == "faiss_ivf":
            index = faiss.IndexIVFFlat(index, WIDTH, LISTS, faiss.METRIC_INNER_PRODUCT)
            sample = np.sort(
                np.random.default_rng(1).choice(len(vectors), min(len(vectors), 64 * LISTS), replace=False)
            )
            index.train(unit(vectors[sample]))
        for first in range(0, len(vectors), 50_000):
            index.add(unit(vectors[first : first + 50_000]))
        faiss.write_index(index, str(target))
    seconds = time.perf_counter() - began
    print(json.dumps({"build_seconds": seconds, "build_memory_bytes": peak_bytes() - before}))


def query(form: str, folder: Path) -> None:
    """Search with each query alone, in this process."""
    queries = np.load(folder / "queries.npy")
    before, began = resident_bytes(), time.perf_counter()
    search = opened(form, folder / form)
    opening = time.perf_counter() - began
    report: dict[str, Any] = {"open_seconds": opening}
    for name, where in (("all", None), ("where", WHERE)):
        if where is not None and form.startswith("faiss"):
            continue
        for vector in queries[:5]:
            search(vector, where)
        seconds, found = [], []
        for vector in queries:
            began = time.perf_counter()
            found.append(search(vector, where))
            seconds.append(time.perf_counter() - began)
        p50, p95 = np.percentile(seconds, [50, 95])
        report[name] = {"p50_ms": 1000 * p50, "p95_ms": 1000 * p95, "found": found}
    print(json.dumps(report | {"memory_bytes": peak_bytes() - before}))


def opened(form: str, path: Path) -> Callable[[np.ndarray, str | None], list[int]]:
    """The index, as a function of a query and a condition to the rows that it finds."""
    if form in ("exact", "lance"):
        index: Index = ExactIndex(path) if form == "exact" else LanceIndex(str(path))

        def ours(vector: np.ndarray, where: str | None) -> list[int]:
            return [int(hit.clip[5:]) for hit in index.search_vector(vector, "student", k=K, where=where)]

        return ours
    import faiss

    theirs: Any = faiss.read_index(str(path))
    if form == "faiss_ivf":
        theirs.nprobe = PROBES
    return lambda vector, where: theirs.search(unit(vector[None]), K)[1][0].tolist()


def in_process(step: str, form: str, folder: Path) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--form", form, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} {form}: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def disk_bytes(path: Path) -> int:
    """Of a file or folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def compare(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each form: everything but the rows that it found."""
    expected: dict[str, list[list[int]]] = {}
    for form in FORMS:
        report = {"form": form, **in_process("build", form, folder), "disk_bytes": disk_bytes(folder / form)}
        report |= in_process("query", form, folder)
        for name in ("all", "where"):
            if name in report:
                found = report[name].pop("found")
                expected.setdefault(name, found)
                shared = [len(set(a) & set(b)) / len(b) for a, b in zip(found, expected[name], strict=True)]
                report[name]["recall_at_10"] = float(np.mean(shared))
        print(json.dumps(report), file=sys.stderr, flush=True)
        yield report
        path = folder / form
        path.unlink() if path.is_file() else shutil.rmtree(path)


def main() -> None:
    """The whole comparison, or a step of it for a form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for everything that is made; removed at the end unless given")
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    parser.add_argument("--step", choices=("build", "query"))
    parser.add_argument("--form", choices=FORMS)
    a = parser.parse_args()
    if a.step:
        (build if a.step == "build" else query)(a.form, a.folder)
        return
    settings: dict[str, Any] = {
        "clips": a.clips, "width": WIDTH, "queries": QUERIES, "k": K, "where": WHERE, "vectors": "made, see search.py",
        "faiss_ivf": {"lists": LISTS, "probes": PROBES}, "cores": os.cpu_count(), "loads": [os.getloadavg()[0]],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=a.folder) as made:
        make_vectors(Path(made), a.clips)
        rows = []
        for row in compare(Path(made)):
            rows.append(row)
            settings["loads"].append(os.getloadavg()[0])  # of all processes: 1 is one busy core
            write_json(a.out, {"settings": settings, "forms": rows, **machine()})


if __name__ == "__main__":
    main()
