"""The exponential of vectors: in float32 the classic polynomial of the Cephes library.

In float64, which serves tests, the C library is called lane by lane.
"""

# Numba and llvmlite carry no types.
# mypy: disable-error-code="untyped-decorator, misc"

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

from zoo.ops.vectors import F32, LANES, constant, llvm

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# ln 2 in two parts: the first has so few digits that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_INTS = ir.VectorType(ir.IntType(32), LANES)


def _polynomial(builder: Any, at: Any, coefficients: tuple[float, ...]) -> Any:
    """Highest power first; terms are combined in pairs, which depend on each other far less than Horner's do."""
    terms = [constant(at.type, coefficient) for coefficient in reversed(coefficients)]
    while len(terms) > 1:
        pairs = [llvm(builder, "fmuladd", high, at, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[len(pairs) * 2 :]
        at = builder.fmul(at, at)
    return terms[0]


def _exp32(builder: Any, x: Any) -> Any:
    vector_type = x.type
    lowest, highest = constant(vector_type, -87.0), constant(vector_type, 88.0)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    x = builder.select(builder.fcmp_ordered(">", x, highest), highest, x)
    # x = n ln 2 + r with |r| below ln(2) / 2; a NaN keeps r a NaN, whatever its n becomes.
    n = llvm(builder, "nearbyint", builder.fmul(x, constant(vector_type, 1.44269504088896341)))
    r = llvm(builder, "fmuladd", n, constant(vector_type, -_LN2_HIGH), x)
    r = llvm(builder, "fmuladd", n, constant(vector_type, -_LN2_LOW), r)
    tail = builder.fmul(_polynomial(builder, r, _EXP), builder.fmul(r, r))
    value = builder.fadd(builder.fadd(tail, r), constant(vector_type, 1.0))
    exponent = builder.shl(builder.add(builder.fptosi(n, _INTS), constant(_INTS, 127)), constant(_INTS, 23))
    return builder.fmul(value, builder.bitcast(exponent, vector_type))


@intrinsic
def exp(typing_context: Any, x: Any) -> Any:
    """The number e to the power x; relative error below 2e-7 in float32; below -87 it stays at 1.6e-38."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _exp32(builder, *args) if sig.args[0] == F32 else llvm(builder, "exp", *args)

    return x(x), generate
