"""Rankings of a gallery by cosine similarity: ties in gallery order, a block of queries at a time.

`top_k_neighbors` is exact; `relevant_ranks`, for metrics, is so to the rounding of float32.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

# Candidates beyond the requested k: far more than those whose order the rounding of a float32 can change.
# Where they do not suffice, as among many equal embeddings, the row is ranked as a whole.
_SPARE = 12
# Queries whose similarities are sorted at a time: they stay in a core's cache.
_TOGETHER = 64


def top_k_neighbors(*, queries: Tensor, gallery: Tensor, k: int, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The k gallery items most similar to each query, by cosine, best first.

    Equal similarities stay in gallery order. A zero embedding has similarity 0 to everything. Never more than
    `block` x G similarities exist at a time.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        k: at least 1; with fewer gallery items, all of them are given.
        block: queries compared at once, at least 1.

    Returns:
        float32 (Q, min(k, G)) similarities in [-1, 1] and int64 (Q, min(k, G)) gallery indices.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    _check(queries, gallery, block)
    if k + _SPARE >= len(gallery):
        # Cloned: a slice would keep its whole block x G ranking alive, and with it the Q x G matrix.
        found = [(s[:, :k].clone(), order[:, :k].clone()) for _, s, order in _rankings(queries, gallery, block=block)]
        return torch.cat([scores for scores, _ in found]), torch.cat([order for _, order in found])
    sizes = torch.cat([_sizes(part) for part in gallery.split(8192)])
    targets = torch.cat([_unit(part).float() for part in gallery.split(8192)]).T
    parts = [_top_k(part, gallery, sizes, targets, k) for part in queries.split(block)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([order for _, order in parts])


def _top_k(queries: Tensor, gallery: Tensor, sizes: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates by float32 products, the k best of them by float64; the whole ranking where that may not be enough."""
    exact = _unit(queries)
    near, candidates = (exact.float() @ targets).topk(k + _SPARE, dim=1)
    candidates = candidates.sort(dim=1).values  # equal scores are to stay in gallery order
    largest, length = sizes[candidates].split(1, dim=2)
    similarity = (exact[:, None] @ gallery[candidates].double().div_(largest).mT)[:, 0] / length[:, :, 0]
    scores, place = similarity.float().clamp(-1, 1).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :k].clone(), candidates.gather(1, place[:, :k])
    # What is no candidate lies at or below the last of them, but for the rounding of a product of D float32 numbers.
    error = (queries.shape[1] + 4) * 2.0**-24
    unsure = (near[:, -1] + 2 * error >= scores[:, -1]).nonzero().flatten()
    if len(unsure):
        for start, ranked, whole in _rankings(queries[unsure], gallery, block=len(queries)):
            rows = unsure[start : start + len(ranked)]
            scores[rows], order[rows] = ranked[:, :k], whole[:, :k]
    return scores, order


def _rankings(queries: Tensor, gallery: Tensor, *, block: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of each block: its first query, float32 (b, G) similarities from high to low, int64 (b, G) gallery indices."""
    targets = _unit(gallery).T
    for start in range(0, len(queries), block):
        # A float32 product rounds equal columns differently by their place, which would reorder equal embeddings
        # (silent clips share one). Computed in float64 and rounded to float32, a tie is a tie.
        similarity = (_unit(queries[start : start + block]) @ targets).float().clamp(-1, 1)
        scores, order = similarity.sort(dim=1, descending=True, stable=True)
        yield start, scores, order


def relevant_ranks(
    queries: Tensor, gallery: Tensor, relevant: Callable[[slice], Tensor], *, block: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Where the relevant gallery items of each query stand in its ranking by cosine, without making the ranking.

    Equal embeddings stay in gallery order; cosines closer than the rounding of float32 may stand in either order.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        relevant: of a slice of the queries, bool (b, G).
        block: queries compared at once, at least 1.

    Yields:
        Of each block: int64 (b,) numbers of relevant items, and int64 (b, R) ranks from 1, ascending; where a query has
        fewer than R, the rest of its row is G + 1.
    """
    _check(queries, gallery, block)
    targets = _unit32(gallery)
    first = _first_of_equal(targets)
    again = np.flatnonzero(first != np.arange(len(first)))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(queries), block):
            similarity = (_unit32(queries[start : start + block]) @ targets.T).cpu().numpy()
            # A product rounds equal columns differently by their place, which would reorder equal embeddings: silent
            # clips share one.
            if len(again):
                similarity[:, again] = similarity[:, first[again]]
            found = relevant(slice(start, start + len(similarity))).cpu().numpy()
            rows = [slice(i, i + _TOGETHER) for i in range(0, len(found), _TOGETHER)]
            parts = list(pool.map(lambda part, s=similarity, r=found: _ranks(s[part], r[part]), rows))
            ranks = np.full((len(found), max(part.shape[1] for _, part in parts)), len(gallery) + 1)
            for part, (_, those) in zip(rows, parts, strict=True):
                ranks[part, : those.shape[1]] = those
            counts = np.concatenate([count for count, _ in parts])
            yield torch.from_numpy(counts).to(queries.device), torch.from_numpy(ranks).to(queries.device)


def _ranks(similarity: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `relevant_ranks`, of a few queries: an item's rank is how many are above it, and the equal ones before it.

    In NumPy, which sorts, finds and compares several times as fast as PyTorch on a processor.
    """
    items = similarity.shape[1]
    row, column = np.divmod(np.flatnonzero(relevant), items)
    counts = np.bincount(row, minlength=len(relevant))
    nth = np.arange(len(row)) - (counts.cumsum() - counts)[row]
    sought = np.full((len(counts), counts.max()), np.inf, np.float32)
    sought[row, nth] = similarity[row, column]
    ordered = np.sort(similarity, axis=1)
    # How many items are not above the one that is sought.
    below = np.stack([values.searchsorted(each, "right") for values, each in zip(ordered, sought, strict=True)])
    ranks = items + 1 - below
    equal_below = np.take_along_axis(ordered, np.maximum(below - 2, 0), 1) == sought
    tied = np.flatnonzero((equal_below & (below >= 2))[row, nth])
    for part in np.array_split(tied, len(tied) // 256 + 1):
        before = np.arange(items) < column[part, None]
        same = similarity[row[part]] == similarity[row[part], column[part], None]
        ranks[row[part], nth[part]] += (same & before).sum(1)
    ranks[np.isinf(sought)] = items + 1
    ranks.sort(axis=1)
    return counts, ranks


def _first_of_equal(rows: Tensor) -> np.ndarray:
    """int64 (N,): for each of the float32 rows, without -0.0, the first one that equals it."""
    bits = np.ascontiguousarray(rows.cpu().numpy())
    sums = bits.view(np.int32).sum(1, dtype=np.int64)
    if len(np.unique(sums)) == len(sums):  # then no two rows are equal, and none has to be moved
        return np.arange(len(sums))
    whole = bits.view(np.dtype((np.void, bits.itemsize * bits.shape[1])))[:, 0]
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    return np.asarray(first[group])


def check_table(name: str, values: Tensor) -> None:
    """Raise ValueError unless `values` are floating, (rows, columns), not empty and without NaN."""
    if values.ndim != 2 or not values.numel() or not values.is_floating_point():
        raise ValueError(
            f"{name} must be floating (rows, columns), not empty; got {values.dtype} {tuple(values.shape)}"
        )
    if values.sum().isnan() and values.isnan().any():  # the sum is the quick check
        raise ValueError(f"{name} hold NaN, first in row {int(values.isnan().any(dim=1).nonzero()[0])}")


def _check(queries: Tensor, gallery: Tensor, block: int) -> None:
    for name, embeddings in (("queries", queries), ("gallery", gallery)):
        check_table(name, embeddings)
        if not embeddings.sum().isfinite() and embeddings.isinf().any():
            raise ValueError(f"{name} hold infinite values")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} channels, the gallery has {gallery.shape[1]}")
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")


def _unit(embeddings: Tensor) -> Tensor:
    """float64, of length 1; a zero embedding stays zero."""
    largest, length = _sizes(embeddings).split(1, dim=1)
    return embeddings.detach().double() / largest / length


def _unit32(embeddings: Tensor) -> Tensor:
    """float32, of length 1 to its rounding; a zero embedding stays zero, and no number is -0.0."""
    values = embeddings.detach()
    largest = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)  # no overflow
    scaled = (values / largest).float()
    return scaled.div_(scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)).add_(0.0)


def _sizes(embeddings: Tensor) -> Tensor:
    """float64 (N, 2): the largest magnitude of each embedding, and the length of what it is divided by that."""
    exact = embeddings.detach().double()
    largest = exact.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # no overflow
    return torch.cat([largest, (exact / largest).norm(dim=1, keepdim=True).clamp_min(1e-12)], dim=1)


def nearest_units(
    queries: np.ndarray, gallery: np.ndarray, k: int, used: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The k rows of a gallery of unit vectors nearest to each query, best first, exactly; ties in gallery order.

    Nothing of the gallery's size is made but a row of similarities for each query, eight of them at a time: a gallery
    is read once for eight queries.

    Args:
        queries: float32 (Q, D), of length 1.
        gallery: float32 (G, D), of length 1, may be a memory map.
        k: at least 1.
        used: bool (G,), the rows that may be found.

    Returns:
        For each query: float32 (n,) cosines and int64 (n,) rows, n at most k.
    """
    rows = np.flatnonzero(used)
    few = len(rows) < len(used) // 8  # then they are copied together; else all are compared, and the others ignored
    part = gallery[rows] if few else gallery
    # Of several queries PyTorch's product: NumPy's copies the gallery, and its threads spin for 25 ms after each. Of
    # one NumPy's, as PyTorch's takes one core.
    sought, items = _tensor(queries), _tensor(part)
    places = rows if few else np.arange(len(gallery))
    # Of a product of D float32 numbers, and of two lengths rounded to float32.
    error = (queries.shape[1] + 8) * 2.0**-24
    scores, indices = [], []
    for i, query in enumerate(queries):
        if i % 8 == 0:
            together = (items @ sought[i : i + 8].T).numpy() if len(queries) > 1 else (part @ query)[:, None]
        near = np.ascontiguousarray(together[:, i % 8])
        if not few:
            near[~used] = -np.inf
        count = min(k, len(rows))
        least = np.partition(near, len(near) - count)[len(near) - count] if count else np.inf
        candidates = np.flatnonzero(near >= least - 2 * error)
        exact = np.concatenate(
            [
                part[block].astype(np.float64) @ query
                for block in np.array_split(candidates, len(candidates) // 8192 + 1)
            ]
        ).astype(np.float32)
        best = np.argsort(-exact, kind="stable")[:count]
        scores.append(exact[best])
        indices.append(places[candidates[best]])
    return scores, indices


def _tensor(array: np.ndarray) -> Tensor:
    """Over the same memory, which nothing writes to: PyTorch warns of read-only memory such as that of a map."""
    interface = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface, array=array)))
