"""The GPU kernels without a GPU, in whole models: interpreted they give the numbers recorded from the authors' code."""

from tests.interpreted import assert_checks_pass


def test_interpreted_kernels_give_the_recorded_numbers() -> None:
    assert_checks_pass(__file__, "parity_triton_checks.py")
