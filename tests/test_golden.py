"""Parity with the released implementation: every value and gradient in the golden file."""

import pytest

from support.golden_rule import (
    GOLDEN,
    assert_golden,
    compared,
    filter_expected,
    filter_results,
    student_expected,
    student_results,
)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", GOLDEN["mnf_csc"], ids=lambda c: f"seed{c['seed']}")
def test_filter_and_losses(case, mode):
    for _, value, expected in compared(filter_results(case, mode), filter_expected(case, mode)):
        assert_golden(value, expected)


@pytest.mark.parametrize("case", GOLDEN["backbone"], ids=lambda c: f"depth{c['depth']}")
def test_released_student(case):
    results = student_results(case)
    for exact in ("n_params", "map_shape"):
        assert results[exact].tolist() == case[exact]
    for _, value, expected in compared(results, student_expected(case)):
        assert_golden(value, expected)
