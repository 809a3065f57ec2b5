"""Short vectors inside Numba functions: eight lanes, each operation one LLVM instruction or a few.

Plain Numba loops leave it to LLVM whether they become vector code, and small edits cost factors of two. With an own
vector type the kernels say what they mean, and their compiled form is the same for every number of channels.

Memory is reached through raw addresses, so that strided tensors need no copy and calls no array objects. At the end:
the compilation of the kernels of all operators.
"""

# Numba and llvmlite carry no types.
# mypy: disable-error-code="untyped-decorator, misc"

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import int64, njit, types, void
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model
from torch import Tensor

from zoo.ops.dispatch import address

Kernel = Callable[..., None]

LANES = 8
# Edges per block: their messages, 1 KB per eight channels, and rows of x stay in the first-level cache.
BLOCK = 32

_I32 = ir.IntType(32)
# Numba's types of one number.
SCALARS = {"f32": types.float32, "f64": types.float64, "i32": types.int32, "i64": types.int64}


class Vector(types.Type):
    """Eight numbers (or truth values) side by side."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"vector{LANES}({dtype})")


F32, F64, I32, MASK = (Vector(t) for t in (types.float32, types.float64, types.int32, types.boolean))
FLOATS = (F32, F64)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, LANES))


def _splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    blank = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(blank, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, blank, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def constant(vector_type: Any, value: float) -> Any:
    """An LLVM constant with the value in every lane."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def llvm(builder: Any, name: str, *args: Any) -> Any:
    """Call the LLVM intrinsic ``name`` on vectors of one type."""
    vector_type = args[0].type
    bits = {"float": 32, "double": 64}[str(vector_type.element)]
    function_type = ir.FunctionType(vector_type, [vector_type] * len(args))
    full_name = f"llvm.{name}.v{vector_type.count}f{bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, full_name), args)


def _address(builder: Any, pointer: Any, index: Any, lanes: int = LANES) -> Any:
    first = builder.gep(pointer, [index])
    return builder.bitcast(first, ir.VectorType(first.type.pointee, lanes).as_pointer())


def _load(builder: Any, pointer: Any, index: Any, lanes: int = LANES) -> Any:
    # Rows start anywhere, so only the alignment of one number can be promised.
    return builder.load(_address(builder, pointer, index, lanes), align=4)


def _store(builder: Any, pointer: Any, index: Any, value: Any, lanes: int = LANES) -> None:
    builder.store(value, _address(builder, pointer, index, lanes), align=4)


def _load_item(builder: Any, pointer: Any, index: Any, offset: int = 0) -> Any:
    return builder.load(builder.gep(pointer, [builder.add(index, ir.Constant(index.type, offset))]))


def _store_item(builder: Any, pointer: Any, index: Any, value: Any) -> None:
    builder.store(value, builder.gep(pointer, [index]))


def _generator(emit: Callable[..., Any]) -> Callable[..., Any]:
    """The code generator that Numba asks for, from a function of the builder and the arguments' values.

    The function returns a value, a list of those of a tuple, or None.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = emit(builder, *args)
        if isinstance(value, list):
            return context.make_tuple(builder, sig.return_type, value)
        return context.get_dummy_value() if value is None else value

    return generate


@intrinsic(prefer_literal=True)
def pointer(typing_context: Any, address: Any, dtype: Any) -> Any:
    """The address as a pointer to numbers of ``dtype``: f32, f64, i32 or i64."""
    pointer_type = types.CPointer(SCALARS[dtype.literal_value])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer_type))

    return pointer_type(types.int64, dtype), generate


@intrinsic(prefer_literal=True)
def scratch(typing_context: Any, count: Any, dtype: Any) -> Any:
    """A pointer to ``count`` numbers on the stack."""
    pointer_type = types.CPointer(SCALARS[dtype.literal_value])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_value_type(pointer_type.dtype)
        block = cgutils.alloca_once(builder, element, size=ir.Constant(ir.IntType(64), count.literal_value))
        return builder.bitcast(block, element.as_pointer())

    return pointer_type(count, dtype), generate


@intrinsic
def item(typing_context: Any, source: Any, index: Any) -> Any:
    """The single number ``source[index]``."""
    return source.dtype(source, types.int64), _generator(_load_item)


@intrinsic
def put_item(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write one number to ``target[index]``."""
    return types.void(target, types.int64, value), _generator(_store_item)


@intrinsic
def load(typing_context: Any, source: Any, index: Any) -> Any:
    """The vector that starts at ``source[index]``."""
    return Vector(source.dtype)(source, types.int64), _generator(_load)


@intrinsic
def store(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write the vector to ``target[index]`` and the numbers after it."""
    return types.void(target, types.int64, value), _generator(_store)


@intrinsic
def prefetch(typing_context: Any, source: Any, index: Any) -> Any:
    """Ask for the cache line of ``source[index]``, which need not exist."""

    def emit(builder: Any, source: Any, index: Any) -> None:
        first = builder.bitcast(builder.gep(source, [index]), ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [first.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # The last three arguments: for reading, keep in the cache, data rather than code.
        builder.call(function, [first, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])

    return types.void(source, types.int64), _generator(emit)


@intrinsic(prefer_literal=True)
def load_rows(typing_context: Any, source: Any, index: Any, stride: Any, num_rows: Any) -> Any:
    """A tuple of the vectors at ``source[index + k * stride]``, k below the literal ``num_rows``."""
    count = num_rows.literal_value
    rows_type = types.UniTuple(Vector(source.dtype), count) if count else types.Tuple(())

    def emit(builder: Any, source: Any, index: Any, stride: Any, _: Any) -> list[Any]:
        rows = []
        for _ in range(count):
            rows.append(_load(builder, source, index))
            index = builder.add(index, stride)
        return rows

    return rows_type(source, types.int64, types.int64, num_rows), _generator(emit)


@intrinsic
def store_rows(typing_context: Any, target: Any, index: Any, stride: Any, rows: Any) -> Any:
    """Write a tuple of vectors to ``target[index + k * stride]``."""

    def emit(builder: Any, target: Any, index: Any, stride: Any, vectors: Any) -> None:
        for k in range(len(rows)):
            _store(builder, target, index, builder.extract_value(vectors, k))
            index = builder.add(index, stride)

    return types.void(target, types.int64, types.int64, rows), _generator(emit)


@intrinsic
def project(typing_context: Any, total: Any, rows: Any, source: Any, index: Any) -> Any:
    """``total`` plus the sum over k of ``source[index + k] * rows[k]``."""

    def emit(builder: Any, value: Any, vectors: Any, source: Any, index: Any) -> Any:
        for k in range(len(rows)):
            factor = _splat(builder, _load_item(builder, source, index, k))
            value = llvm(builder, "fmuladd", factor, builder.extract_value(vectors, k), value)
        return value

    return total(total, rows, source, types.int64), _generator(emit)


@intrinsic
def accumulate(typing_context: Any, rows: Any, value: Any, source: Any, index: Any) -> Any:
    """The rows with ``source[index + k] * value`` added to row k: the transpose of ``project``."""

    def emit(builder: Any, vectors: Any, factor: Any, source: Any, index: Any) -> list[Any]:
        added = []
        for k in range(len(rows)):
            scalar = _splat(builder, _load_item(builder, source, index, k))
            added.append(llvm(builder, "fmuladd", scalar, factor, builder.extract_value(vectors, k)))
        return added

    return rows(rows, value, source, types.int64), _generator(emit)


@intrinsic(prefer_literal=True)
def add_scaled(typing_context: Any, target: Any, index: Any, factor: Any, source: Any, start: Any, count: Any) -> Any:
    """Add ``factor * source[start + k]`` to ``target[index + k]`` for k below the literal ``count``."""
    lanes = count.literal_value

    def emit(builder: Any, target: Any, index: Any, factor: Any, source: Any, start: Any, _: Any) -> None:
        if lanes:
            value, old = _load(builder, source, start, lanes), _load(builder, target, index, lanes)
            total = llvm(builder, "fmuladd", _splat(builder, factor, lanes), value, old)
            _store(builder, target, index, total, lanes)

    return types.void(target, types.int64, factor, source, types.int64, count), _generator(emit)


@intrinsic
def add_scaled_rows(typing_context: Any, rows: Any, factor: Any, source: Any, index: Any, stride: Any) -> Any:
    """The rows with ``factor`` times the vector at ``source[index + k * stride]`` added to row k."""

    def emit(builder: Any, vectors: Any, scalar: Any, source: Any, index: Any, stride: Any) -> list[Any]:
        splatted, added = _splat(builder, scalar), []
        for k in range(len(rows)):
            value = _load(builder, source, index)
            added.append(llvm(builder, "fmuladd", splatted, value, builder.extract_value(vectors, k)))
            index = builder.add(index, stride)
        return added

    return rows(rows, factor, source, types.int64, types.int64), _generator(emit)


@intrinsic
def total(typing_context: Any, value: Any) -> Any:
    """The sum of the eight lanes, pair by pair."""

    def emit(builder: Any, value: Any) -> Any:
        lanes = [builder.extract_element(value, ir.Constant(_I32, i)) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
        while len(lanes) > 1:
            lanes = [builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    return value.dtype(value), _generator(emit)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """The number in every lane."""
    return Vector(value)(value), _generator(_splat)


@intrinsic
def where(typing_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """In each lane ``yes`` where the mask is true, else ``no``."""
    return yes(MASK, yes, no), _generator(lambda builder, mask, yes, no: builder.select(mask, yes, no))


@intrinsic
def is_nan(typing_context: Any, value: Any) -> Any:
    """True in the lanes that hold no number."""
    return MASK(value), _generator(lambda builder, value: builder.fcmp_unordered("uno", value, value))


def _operator(python_operator: Callable[..., Any], result: Vector | None, emit: Callable[..., Any]) -> None:
    """Let a Python operator act on two float vectors."""

    class Template(ConcreteTemplate):
        cases = [signature(result or t, t, t) for t in FLOATS]  # noqa: RUF012

    infer_global(python_operator)(Template)
    for t in FLOATS:
        lower_builtin(python_operator, t, t)(_generator(emit))


_operator(operator.add, None, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, None, lambda builder, a, b: builder.fsub(a, b))
_operator(operator.mul, None, lambda builder, a, b: builder.fmul(a, b))
_operator(operator.truediv, None, lambda builder, a, b: builder.fdiv(a, b))
_operator(operator.gt, MASK, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.le, MASK, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@intrinsic
def either(typing_context: Any, a: Any, b: Any) -> Any:
    """True in the lanes where one of the masks is."""
    return MASK(MASK, MASK), _generator(lambda builder, a, b: builder.or_(a, b))


@intrinsic
def next_ids(typing_context: Any, ids: Any) -> Any:
    """Every lane of an int32 vector plus one."""
    return I32(I32), _generator(lambda builder, ids: builder.add(ids, constant(ids.type, 1)))


# The polynomial of the Cephes library for the exponential in float32, highest power first.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# ln 2 in two parts: the first has so few digits that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


def _polynomial(builder: Any, at: Any, coefficients: tuple[float, ...]) -> Any:
    """Terms are combined in pairs, which depend on each other far less than Horner's do."""
    terms = [constant(at.type, coefficient) for coefficient in reversed(coefficients)]
    while len(terms) > 1:
        pairs = [llvm(builder, "fmuladd", high, at, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[len(pairs) * 2 :]
        at = builder.fmul(at, at)
    return terms[0]


def _exp32(builder: Any, x: Any) -> Any:
    vector_type, ints = x.type, ir.VectorType(_I32, LANES)
    lowest, highest = constant(vector_type, -87.0), constant(vector_type, 88.0)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    x = builder.select(builder.fcmp_ordered(">", x, highest), highest, x)
    # x = n ln 2 + r with |r| below ln(2) / 2; a NaN keeps r a NaN, whatever its n becomes.
    n = llvm(builder, "nearbyint", builder.fmul(x, constant(vector_type, 1.44269504088896341)))
    r = llvm(builder, "fmuladd", n, constant(vector_type, -_LN2_HIGH), x)
    r = llvm(builder, "fmuladd", n, constant(vector_type, -_LN2_LOW), r)
    tail = builder.fmul(_polynomial(builder, r, _EXP), builder.fmul(r, r))
    value = builder.fadd(builder.fadd(tail, r), constant(vector_type, 1.0))
    exponent = builder.shl(builder.add(builder.fptosi(n, ints), constant(ints, 127)), constant(ints, 23))
    return builder.fmul(value, builder.bitcast(exponent, vector_type))


@intrinsic
def exp(typing_context: Any, x: Any) -> Any:
    """The number e to the power x; in float32 with a relative error below 2e-7, and 1.6e-38 below -87.

    In float64, which serves tests, the C library is called lane by lane.
    """
    return x(x), _generator(_exp32 if x == F32 else lambda builder, x: llvm(builder, "exp", x))


def compiled(num_floats: int, dtype: str) -> Callable[[Callable[..., None]], Kernel]:
    """Compile for integers followed by so many floats, f32 or f64; kept on disk where some folder can be written."""
    scalar = SCALARS[dtype]

    def compile_(function: Callable[..., None]) -> Kernel:
        form = void(*[int64] * (function.__code__.co_argcount - num_floats), *[scalar] * num_floats)
        function.__qualname__ += f".{_stamp():08x}"
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        try:
            kernel: Kernel = njit(form, cache=True, **options)(function)
        except (RuntimeError, OSError):
            # Neither the package's folder nor the user's cache can be written.
            kernel = njit(form, **options)(function)
        return kernel

    return compile_


@cache
def _stamp() -> int:
    """A checksum of this file, for the names of kernels: on disk, Numba renews a kernel when its own file changes."""
    return zlib.crc32(Path(__file__).read_bytes())


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """The address of each tensor; tensors must outlive their use."""
    return tuple(address(tensor) for tensor in tensors)


def dtype_code(tensor: Tensor) -> str:
    """The precision of a tensor as the kernels call it: f32 or f64."""
    return "f64" if tensor.dtype == torch.float64 else "f32"
