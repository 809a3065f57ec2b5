"""Solvers find fixed points of whole states, say how well, and remember a bounded number of states."""

import math

import pytest
import torch

from tests.layers.memory import peak_bytes
from zoo.layers.solvers import ACCELERATORS, DampedState, as_fraction, relative_residual, solve, solve_reversibly

METHODS = sorted(ACCELERATORS)


def linear(radius: float, num_nodes: int = 6, channels: int = 4, *, sign: int = 1, seed: int = 0):
    """f(z) = A z + b that couples all entries, with eigenvalues between 0 and ``sign * radius``, and its solution."""
    size, generator = num_nodes * channels, torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = sign * basis @ torch.diag(torch.linspace(0, radius, size, dtype=torch.float64)) @ basis.t()
    offset = torch.randn(size, generator=generator, dtype=torch.float64)
    solution = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - matrix, offset)

    def f(z: torch.Tensor) -> torch.Tensor:
        return (matrix.to(z) @ z.flatten() + offset.to(z)).view_as(z)

    return f, solution.view(num_nodes, channels), torch.zeros(num_nodes, channels, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("history", [1, 4, 20])
def test_linear_fixed_point_is_found(method: str, history: int) -> None:
    f, expected, z0 = linear(0.8)
    found = solve(f, z0, method=method, tol=1e-12, max_iters=300, history=history)
    assert found.converged
    assert found.residual <= 1e-12
    torch.testing.assert_close(found.z, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_nonlinear_fixed_point_is_found(method: str) -> None:
    found = solve(torch.cos, torch.zeros(3, 2, dtype=torch.float64), method=method, tol=1e-13, max_iters=200)
    torch.testing.assert_close(found.z, torch.full((3, 2), 0.7390851332151607, dtype=torch.float64))


@pytest.mark.parametrize("method", ["anderson", "broyden"])
def test_acceleration_needs_fewer_evaluations_than_plain_iteration(method: str) -> None:
    f, _, z0 = linear(0.95)
    settings = {"tol": 1e-6, "max_iters": 1000, "history": 10}
    plain = solve(f, z0, method="picard", **settings)
    fast = solve(f, z0, method=method, **settings)
    assert fast.converged
    assert 3 * fast.num_iters < plain.num_iters


@pytest.mark.parametrize("method", ["anderson", "broyden"])
def test_acceleration_converges_where_plain_iteration_diverges(method: str) -> None:
    f, expected, z0 = linear(3.0, sign=-1)
    settings = {"tol": 1e-10, "max_iters": 200, "history": 30}
    found = solve(f, z0, method=method, **settings)
    assert found.converged
    torch.testing.assert_close(found.z, expected, rtol=1e-7, atol=1e-7)
    assert not solve(f, z0, method="picard", **settings).converged


@pytest.mark.parametrize("method", METHODS)
def test_residual_is_that_of_the_returned_state_and_the_best_one(method: str) -> None:
    f, _, z0 = linear(1.3, sign=-1)
    seen: list[float] = []

    def watched(z: torch.Tensor) -> torch.Tensor:
        value = f(z)
        seen.append(relative_residual(value - z, value))
        return value

    found = solve(watched, z0, method=method, tol=1e-30, max_iters=25, history=3)
    assert not found.converged
    assert found.num_iters == len(seen) == 25
    value = f(found.z)
    assert found.residual == relative_residual(value - found.z, value) == min(seen)


@pytest.mark.parametrize("method", METHODS)
def test_stops_at_the_first_iterate_below_the_tolerance(method: str) -> None:
    f, _, z0 = linear(0.5)
    strict = solve(f, z0, method=method, tol=1e-10, max_iters=100)
    loose = solve(f, z0, method=method, tol=1e-2, max_iters=100)
    assert loose.converged
    assert loose.num_iters < strict.num_iters < 100
    cut = solve(f, z0, method=method, tol=1e-10, max_iters=loose.num_iters)
    assert torch.equal(cut.z, loose.z)
    assert not cut.converged


@pytest.mark.parametrize("method", METHODS)
def test_one_residual_judges_the_whole_state(method: str) -> None:
    """A row that has not settled does not matter beside rows a thousand times as large."""

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(z[0], 1000.0), 1.0 - z[1]])

    found = solve(f, torch.zeros(2, 3), method=method, tol=2e-3, max_iters=50)
    assert found.converged
    assert found.num_iters == 2


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_left_behind(method: str) -> None:
    f, expected, z0 = linear(2.5, sign=-1)
    limit = 1.5 * expected.abs().max()

    def guarded(z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, math.nan) if z.abs().max() > limit else f(z)

    found = solve(guarded, z0, method=method, tol=1e-8, max_iters=300, history=30)
    assert torch.isfinite(found.z).all()
    assert found.residual < 1
    assert found.residual == relative_residual(f(found.z) - found.z, f(found.z))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_equation_that_is_never_finite_gives_the_initial_state(method: str, bad: float) -> None:
    z0 = torch.ones(2, 2)
    found = solve(lambda z: torch.full_like(z, bad), z0, method=method)
    assert torch.equal(found.z, z0)
    assert found.residual == math.inf
    assert (found.num_iters, found.converged) == (1, False)


def test_zero_is_a_fixed_point_like_any_other() -> None:
    found = solve(lambda z: 0 * z, torch.ones(2, 2), method="picard", tol=1e-6, max_iters=5)
    assert (found.residual, found.num_iters, found.converged) == (0.0, 2, True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_repeats_to_the_last_bit(method: str, dtype: torch.dtype) -> None:
    f, _, z0 = linear(0.99)
    first, second = (solve(f, z0.to(dtype), method=method, tol=1e-5, max_iters=40) for _ in range(2))
    assert first.z.dtype == dtype
    assert torch.equal(first.z, second.z)
    assert first[1:] == second[1:]


@pytest.mark.parametrize("method", METHODS)
def test_float32_reaches_its_own_precision(method: str) -> None:
    f, expected, z0 = linear(0.9)
    found = solve(f, z0.float(), method=method, tol=2e-6, max_iters=200)
    assert found.converged
    torch.testing.assert_close(found.z.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_bounded_by_the_history(method: str) -> None:
    num_nodes, channels, history = 500, 8, 4
    z0 = torch.zeros(num_nodes, channels)
    state = z0.numel() * z0.element_size()

    def f(z: torch.Tensor) -> torch.Tensor:
        return 1 - 0.999 * z.roll(1, 0)

    def run(max_iters: int) -> int:
        settings = {"method": method, "tol": 1e-30, "max_iters": max_iters, "history": history}
        return peak_bytes(lambda: solve(f, z0, **settings))

    short, long = run(12), run(120)
    assert long <= short + 0.1 * state
    assert long <= ((0 if method == "picard" else 2 * history) + 10) * state


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "newton"}, "method: expected one of anderson, broyden, picard, got 'newton'"),
        ({"tol": 0.0}, "tol > 0"),
        ({"max_iters": 0}, "max_iters >= 1"),
        ({"history": 0}, "history >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(torch.cos, torch.zeros(1), **setting)


@pytest.mark.parametrize("beta", [0.1, 0.35, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reversible_iteration_runs_back_to_the_last_bit(beta: float, dtype: torch.dtype) -> None:
    """Also where it does not converge."""
    inner, _, z0 = linear(4.0, sign=-1)

    def f(z: torch.Tensor) -> torch.Tensor:
        return 5 * inner(z).sin()

    found, y, z = solve_reversibly(f, z0.to(dtype), beta=beta, tol=1e-30, max_iters=12)
    assert found.num_iters == 12
    fraction = as_fraction(beta)
    for _ in range(12):
        z.backward(f(y.read(dtype)).double() * float(fraction), 1 - fraction)
        y.backward(f(z.read(dtype)).double() * float(fraction), 1 - fraction)
    for state in (y, z):
        assert not state.value.any()
        assert not state.dropped.any()


def test_damped_state_is_the_damped_sum() -> None:
    torch.manual_seed(0)
    z, values = torch.randn(5, 3, dtype=torch.float64), torch.randn(20, 5, 3, dtype=torch.float64)
    state, expected = DampedState.of(z), z
    for value in values:
        state.forward(0.8 * value, as_fraction(0.2))
        expected = 0.2 * expected + 0.8 * value
    torch.testing.assert_close(state.read(torch.float64), expected, rtol=0, atol=1e-11)


def test_reversible_iteration_finds_the_fixed_point() -> None:
    f, expected, z0 = linear(0.5)
    found, y, z = solve_reversibly(f, z0, beta=0.8, tol=1e-6, max_iters=20)
    assert found.converged
    assert found.num_iters < 20
    assert torch.equal(found.z, z.read(torch.float64))
    for state in (y, z):
        torch.testing.assert_close(state.read(torch.float64), expected, rtol=1e-5, atol=1e-5)


def test_a_solve_that_is_not_run_back_may_take_any_number_of_iterations() -> None:
    f, expected, z0 = linear(0.99)
    found, _, _ = solve_reversibly(f, z0, beta=0.3, tol=1e-9, max_iters=5000, run_back=False)
    assert found.converged
    assert found.num_iters > 500
    torch.testing.assert_close(found.z, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e7])
def test_reversible_iteration_says_when_values_leave_its_range(bad: float) -> None:
    found, _, _ = solve_reversibly(lambda z: torch.full_like(z, bad), torch.zeros(2, 2))
    assert found.residual == math.inf
    assert not found.converged


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.0}, "beta"),
        ({"tol": 0.0}, "tol"),
        ({"beta": 0.8, "max_iters": 28}, r"max_iters \(28\) with beta 0.8 drops more digits than 63 bits hold"),
    ],
)
def test_reversible_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_reversibly(torch.cos, torch.zeros(1), **setting)
