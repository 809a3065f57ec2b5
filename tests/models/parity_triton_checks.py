"""The GPU kernels in whole models give the numbers recorded from the authors' code; run by test_interpreted.py."""

import pytest

from tests.models import test_parity
from zoo.ops.dispatch import use_backend

RECORDED = [
    ("revgcn_equals_the_authors", ("revgcn_g2_l1_max_train_f64", True)),
    ("coupling_equals_the_authors", ("coupling_gen_g4_encode_train_f64", "reversible")),
    ("coupling_equals_the_authors", ("coupling_gcn_g2_train_f64", "reversible")),
    ("coupling_equals_the_authors", ("coupling_sage_g2_train_f64", "reversible")),
    ("first_of_tied_maxima_takes_the_gradient", ("genconv_ties_max_f64",)),
    # Its inversion, which test_parity.py tests, calls the same kernels once more.
    ("revgat_equals_the_authors", ("revgat_l3_norm_noattndst_train_f64", False)),
]


@pytest.mark.parametrize(("what", "case"), RECORDED)
def test_interpreted_kernels_give_the_recorded_numbers(what, case):
    with use_backend("triton"):
        getattr(test_parity, f"test_{what}")(*case)
