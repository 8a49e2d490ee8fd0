"""The nearest gallery items against a full sort in float64, ties and near ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avdistill.search.knn import relevant_ranks, top_k_neighbors


def full_sort(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines in float64, told apart as far as a float32 can, and the stable order of them."""
    q, g = queries.double().numpy(), gallery.double().numpy()
    cosines = ((q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T).astype(np.float32)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1), order


@pytest.mark.parametrize("gallery", [41, 700])
@pytest.mark.parametrize("k", [1, 4, 41, 60])
@pytest.mark.parametrize("block", [5, 1024])
def test_they_equal_a_full_sort(k: int, block: int, gallery: int) -> None:
    generator = torch.Generator().manual_seed(4)
    queries, items = torch.randn(23, 6, generator=generator), torch.randn(gallery, 6, generator=generator)
    scores, indices = top_k_neighbors(queries=queries, gallery=items, k=k, block=block)
    expected_scores, expected = full_sort(queries, items, k)
    assert indices.dtype == torch.int64
    assert scores.dtype == torch.float32
    assert indices.tolist() == expected.tolist()
    assert scores.numpy() == pytest.approx(expected_scores, abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-5, 1e-3])
def test_a_crowd_of_nearly_equal_items_is_told_apart_as_far_as_float32_goes(spread: float) -> None:
    """Where the products of float32 numbers cannot tell which k are nearest, all are compared exactly."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.rand(9, 64, generator=generator)
    gallery = torch.rand(1, 64, generator=generator) + spread * torch.randn(400, 64, generator=generator)
    scores, indices = top_k_neighbors(queries=queries, gallery=gallery, k=20, block=4)
    expected_scores, expected = full_sort(queries, gallery, 20)
    # A cosine half-way between two float32 numbers may go either way; what is said of each item must be its own.
    assert np.abs(scores.numpy() - expected_scores).max() <= 6.1e-8
    own = torch.nn.functional.cosine_similarity(queries.double()[:, None], gallery.double()[indices], dim=2)
    assert (own.float() - scores).abs().max() <= 6.1e-8
    if spread in (0.0, 1e-3):
        assert indices.tolist() == expected.tolist()


@example(seed=0, block=1, width=513, k=37)
@given(
    seed=st.integers(0, 10_000),
    block=st.integers(1, 40),
    width=st.sampled_from([3, 64, 513]),
    k=st.sampled_from([1, 5, 37]),
)
@settings(max_examples=25, deadline=None)
def test_equal_embeddings_stay_in_gallery_order(seed: int, block: int, width: int, k: int) -> None:
    # Float32 products of equal rows differ by their place in the matrix: done in float32, the example fails.
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.rand(4, width, generator=generator)
    kind = torch.randint(4, (37,), generator=generator)
    scale = 2.0 ** torch.randint(-30, 30, (37, 1), generator=generator)  # a power of two leaves the direction as it is
    queries = torch.rand(11, width, generator=generator)
    scores, indices = top_k_neighbors(queries=queries, gallery=distinct[kind] * scale, k=k, block=block)
    for row, order in zip(scores, indices, strict=True):
        for value in kind[order].unique():
            places = (kind[order] == value).nonzero().flatten()
            first = (kind == value).nonzero().flatten()[: len(places)]
            assert order[places].tolist() == first.tolist()
            assert row[places].unique().numel() == 1


@pytest.mark.parametrize("gallery", [5, 90])
def test_a_silent_embedding_is_equally_far_from_everything(gallery: int) -> None:
    items = torch.randn(gallery, 3, generator=torch.Generator().manual_seed(0))
    scores, indices = top_k_neighbors(queries=torch.zeros(1, 3), gallery=items, k=5)
    assert scores.tolist() == [[0.0] * 5]
    assert indices.tolist() == [[0, 1, 2, 3, 4]]


def test_numbers_near_the_ends_of_float32_do_not_overflow() -> None:
    generator = torch.Generator().manual_seed(5)
    queries, gallery = torch.randn(7, 6, generator=generator), torch.randn(60, 6, generator=generator)
    expected = top_k_neighbors(queries=queries, gallery=gallery, k=5)
    found = top_k_neighbors(queries=queries * 2.0**-100, gallery=gallery * 2.0**100, k=5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("gallery", "finder"), [(6, "sort"), (60, "topk")])
def test_only_a_block_of_similarities_exists_at_a_time(
    monkeypatch: pytest.MonkeyPatch, gallery: int, finder: str
) -> None:
    heights: list[int] = []
    original = getattr(torch.Tensor, finder)

    def recording(self: torch.Tensor, *arguments: object, **options: object) -> object:
        heights.append(len(self))
        return original(self, *arguments, **options)

    kept: list[torch.Tensor] = []
    join = torch.cat

    def recording_join(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        kept.extend(parts)
        return join(parts, dim)

    monkeypatch.setattr(torch.Tensor, finder, recording)
    monkeypatch.setattr(torch, "cat", recording_join)
    top_k_neighbors(queries=torch.randn(10, 3), gallery=torch.randn(gallery, 3), k=2, block=4)
    assert heights == [4, 4, 2]
    assert len(kept) >= 6
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in kept[-6:])  # no slice holds its whole block


@example(seed=0, block=1, width=513)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 40), width=st.sampled_from([3, 64, 513]))
@settings(max_examples=25, deadline=None)
def test_ranks_are_those_of_the_whole_ranking_equal_embeddings_in_gallery_order(
    seed: int, block: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.cat([torch.rand(4, width, generator=generator), torch.zeros(1, width)])
    gallery = distinct[torch.randint(5, (37,), generator=generator)]
    gallery = gallery * 2.0 ** torch.randint(-30, 30, (37, 1), generator=generator)
    queries = torch.cat([torch.rand(10, width, generator=generator), torch.zeros(1, width)])
    relevant = torch.rand(11, 37, generator=generator) < torch.rand(11, 1, generator=generator)
    relevant[3] = False
    _, order = top_k_neighbors(queries=queries, gallery=gallery, k=37)
    expected = [(row[places].nonzero()[:, 0] + 1).tolist() for row, places in zip(relevant, order, strict=True)]
    parts = list(relevant_ranks(queries, gallery, lambda part: relevant[part], block=block))
    assert [len(counts) for counts, _ in parts] == [len(part) for part in queries.split(block)]
    found = [row for counts, ranks in parts for row in zip(counts.tolist(), ranks.tolist(), strict=True)]
    for (count, ranks), wanted in zip(found, expected, strict=True):
        assert ranks[:count] == wanted
        assert all(rank == 38 for rank in ranks[count:])


def test_bad_input_is_refused() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="k must be"):
        top_k_neighbors(queries=one, gallery=one, k=0)
    with pytest.raises(ValueError, match="gallery hold infinite"):
        top_k_neighbors(queries=one, gallery=one * torch.inf, k=1)
    with pytest.raises(ValueError, match="2 channels, the gallery has 3"):
        top_k_neighbors(queries=one, gallery=torch.ones(50, 3), k=1)
