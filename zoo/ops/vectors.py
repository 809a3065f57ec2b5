"""Short vectors inside Numba functions: eight lanes, each operation one LLVM instruction or a few.

Plain Numba loops leave it to LLVM whether they become vector code, and small edits cost factors of two. With an own
vector type the kernels say what they mean, and their compiled form is the same for every number of channels.

Memory is reached through raw addresses, so that strided tensors need no copy and calls no array objects.
"""

# Numba and llvmlite carry no types.
# mypy: disable-error-code="untyped-decorator, misc"

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8

_I32 = ir.IntType(32)
_POINTEES = {"f32": types.float32, "f64": types.float64, "i32": types.int32, "i64": types.int64}


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
    kind = args[0].type
    bits = {"float": 32, "double": 64}[str(kind.element)]
    function_type = ir.FunctionType(kind, [kind] * len(args))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{kind.count}f{bits}")
    return builder.call(function, args)


def _address(builder: Any, pointer: Any, index: Any, lanes: int = LANES) -> Any:
    place = builder.gep(pointer, [index])
    return builder.bitcast(place, ir.VectorType(place.type.pointee, lanes).as_pointer())


def _load(builder: Any, pointer: Any, index: Any, lanes: int = LANES) -> Any:
    # Rows start anywhere, so only the alignment of one number can be promised.
    return builder.load(_address(builder, pointer, index, lanes), align=4)


def _store(builder: Any, pointer: Any, index: Any, value: Any, lanes: int = LANES) -> None:
    builder.store(value, _address(builder, pointer, index, lanes), align=4)


def _offset(builder: Any, index: Any, count: int) -> Any:
    return builder.add(index, ir.Constant(index.type, count))


@intrinsic(prefer_literal=True)
def pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    """The address as a pointer to ``kind``: f32, f64, i32 or i64."""
    pointer_type = types.CPointer(_POINTEES[kind.literal_value])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer_type))

    return pointer_type(types.int64, kind), generate


@intrinsic(prefer_literal=True)
def scratch(typing_context: Any, count: Any, kind: Any) -> Any:
    """A pointer to ``count`` numbers on the stack."""
    pointer_type = types.CPointer(_POINTEES[kind.literal_value])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_value_type(pointer_type.dtype)
        block = cgutils.alloca_once(builder, element, size=ir.Constant(ir.IntType(64), count.literal_value))
        return builder.bitcast(block, element.as_pointer())

    return pointer_type(count, kind), generate


@intrinsic
def item(typing_context: Any, source: Any, index: Any) -> Any:
    """The single number ``source[index]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]))

    return source.dtype(source, types.int64), generate


@intrinsic
def add_item(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Add one number to ``target[index]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]])
        builder.store(builder.fadd(builder.load(place), args[2]), place)
        return context.get_dummy_value()

    return types.void(target, types.int64, value), generate


@intrinsic
def put_item(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write one number to ``target[index]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(target, types.int64, value), generate


@intrinsic
def load(typing_context: Any, source: Any, index: Any) -> Any:
    """The vector that starts at ``source[index]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(builder, args[0], args[1])

    return Vector(source.dtype)(source, types.int64), generate


@intrinsic
def store(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write the vector to ``target[index]`` and the places after it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, *args)
        return context.get_dummy_value()

    return types.void(target, types.int64, value), generate


@intrinsic
def prefetch(typing_context: Any, source: Any, index: Any) -> Any:
    """Ask for the cache line of ``source[index]``, which need not exist."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # For reading, to be kept, data rather than code.
        builder.call(function, [place, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(source, types.int64), generate


@intrinsic(prefer_literal=True)
def load_rows(typing_context: Any, source: Any, index: Any, stride: Any, num_rows: Any) -> Any:
    """A tuple of the vectors at ``source[index + k * stride]``, k below the literal ``num_rows``."""
    count = num_rows.literal_value
    rows_type = types.UniTuple(Vector(source.dtype), count) if count else types.Tuple(())

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows, place = [], args[1]
        for _ in range(count):
            rows.append(_load(builder, args[0], place))
            place = builder.add(place, args[2])
        return context.make_tuple(builder, rows_type, rows)

    return rows_type(source, types.int64, types.int64, num_rows), generate


@intrinsic
def store_rows(typing_context: Any, target: Any, index: Any, stride: Any, rows: Any) -> Any:
    """Write a tuple of vectors to ``target[index + k * stride]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = args[1]
        for k in range(len(rows)):
            _store(builder, args[0], place, builder.extract_value(args[3], k))
            place = builder.add(place, args[2])
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, rows), generate


@intrinsic
def project(typing_context: Any, total: Any, rows: Any, source: Any, index: Any) -> Any:
    """``total`` plus the sum over k of ``source[index + k] * rows[k]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, vectors, place, first = args
        for k in range(len(rows)):
            factor = builder.load(builder.gep(place, [_offset(builder, first, k)]))
            value = llvm(builder, "fmuladd", _splat(builder, factor), builder.extract_value(vectors, k), value)
        return value

    return total(total, rows, source, types.int64), generate


@intrinsic
def accumulate(typing_context: Any, rows: Any, value: Any, source: Any, index: Any) -> Any:
    """The rows with ``source[index + k] * value`` added to row k: the transpose of ``project``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors, factor, place, first = args
        added = []
        for k in range(len(rows)):
            scalar = builder.load(builder.gep(place, [_offset(builder, first, k)]))
            row = builder.extract_value(vectors, k)
            added.append(llvm(builder, "fmuladd", _splat(builder, scalar), factor, row))
        return context.make_tuple(builder, sig.return_type, added)

    return rows(rows, value, source, types.int64), generate


@intrinsic(prefer_literal=True)
def add_scaled(typing_context: Any, target: Any, index: Any, factor: Any, source: Any, place: Any, count: Any) -> Any:
    """Add ``factor * source[place + k]`` to ``target[index + k]`` for k below the literal ``count``."""
    lanes = count.literal_value

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        goal, first, scalar, origin, second, _ = args
        if lanes:
            value = _load(builder, origin, second, lanes)
            old = _load(builder, goal, first, lanes)
            _store(builder, goal, first, llvm(builder, "fmuladd", _splat(builder, scalar, lanes), value, old), lanes)
        return context.get_dummy_value()

    return types.void(target, types.int64, factor, source, types.int64, count), generate


@intrinsic
def add_scaled_rows(typing_context: Any, rows: Any, factor: Any, source: Any, index: Any, stride: Any) -> Any:
    """The rows with ``factor`` times the vector at ``source[index + k * stride]`` added to row k."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors, scalar, origin, place, step = args
        splatted, added = _splat(builder, scalar), []
        for k in range(len(rows)):
            value = _load(builder, origin, place)
            added.append(llvm(builder, "fmuladd", splatted, value, builder.extract_value(vectors, k)))
            place = builder.add(place, step)
        return context.make_tuple(builder, sig.return_type, added)

    return rows(rows, factor, source, types.int64, types.int64), generate


@intrinsic
def total(typing_context: Any, value: Any) -> Any:
    """The sum of the eight lanes, pair by pair."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = [builder.extract_element(args[0], ir.Constant(_I32, i)) for i in range(LANES)]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [builder.fadd(lanes[i], lanes[i + half]) for i in range(half)]
        return lanes[0]

    return value.dtype(value), generate


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """The number in every lane."""
    return Vector(value)(value), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic
def where(typing_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """In each lane ``yes`` where the mask is true, else ``no``."""
    return yes(MASK, yes, no), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def is_nan(typing_context: Any, value: Any) -> Any:
    """True in the lanes that hold no number."""
    return MASK(value), lambda context, builder, sig, args: builder.fcmp_unordered("uno", args[0], args[0])


def _operator(python_operator: Callable[..., Any], result: Vector | None, emit: Callable[..., Any]) -> None:
    """Let a Python operator act on two float vectors."""

    class Template(ConcreteTemplate):
        cases = [signature(result or t, t, t) for t in FLOATS]  # noqa: RUF012

    infer_global(python_operator)(Template)
    for t in FLOATS:
        lower_builtin(python_operator, t, t)(lambda context, builder, sig, args: emit(builder, *args))


_operator(operator.add, None, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, None, lambda builder, a, b: builder.fsub(a, b))
_operator(operator.mul, None, lambda builder, a, b: builder.fmul(a, b))
_operator(operator.truediv, None, lambda builder, a, b: builder.fdiv(a, b))
_operator(operator.gt, MASK, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.le, MASK, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@intrinsic
def either(typing_context: Any, a: Any, b: Any) -> Any:
    """True in the lanes where one of the masks is."""
    return MASK(MASK, MASK), lambda context, builder, sig, args: builder.or_(*args)


@intrinsic
def lane(typing_context: Any, value: Any, index: Any) -> Any:
    """The number in one lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], _I32))

    return value.dtype(value, types.int64), generate


@intrinsic
def next_ids(typing_context: Any, ids: Any) -> Any:
    """Every lane of an int32 vector plus one."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.add(args[0], constant(args[0].type, 1))

    return I32(I32), generate
