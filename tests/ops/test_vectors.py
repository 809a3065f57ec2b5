"""Arithmetic of eight lanes against NumPy."""

import numpy as np
from numba import njit

from zoo.ops.vectors import exp, load, pointer, store


@njit
def _exp32(source, target, count):
    for i in range(0, count, 8):
        store(pointer(target, "f32"), i, exp(load(pointer(source, "f32"), i)))


def _apply(function, values):
    source = values.astype(np.float32)
    target = np.empty_like(source)
    function(source.ctypes.data, target.ctypes.data, source.size)
    return source.astype(np.float64), target.astype(np.float64)


def test_exp_is_right_to_the_last_digits():
    x, y = _apply(_exp32, np.linspace(-86, 87, 80_000))
    assert np.max(np.abs(y / np.exp(x) - 1)) < 2e-7


def test_exp_far_outside_its_range_stays_finite_and_small_or_large():
    _, y = _apply(_exp32, np.array([-np.inf, -1e30, -88, -87, 88, 89, 1e30, np.inf]))
    assert np.isfinite(y).all()
    assert (y[:4] < 2e-38).all()
    assert (y[4:] > 1e38).all()


def test_nan_stays_nan():
    _, y = _apply(_exp32, np.array([np.nan] * 8))
    assert np.isnan(y).all()
