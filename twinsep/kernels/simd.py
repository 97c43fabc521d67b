"""Short vectors for Numba kernels: a type `Lanes`, one machine register of neighbouring channels, with arithmetic.

LLVM vectorises simple loops by itself, but not those of the selective scan, which write one array while reading several
others: LLVM cannot prove that these do not overlap, and gives up or tests for it in every frame, which is three times
slower. Here the vectors are explicit: 64 bytes, sixteen float32 or eight float64, which is one AVX-512 register, two of
AVX2 or four of NEON. LLVM splits them as the machine needs and keeps a vector in a variable in registers.

A kernel may use, on `Lanes` x and y: x + y, x - y, x * y, x / y, exp2(x), maximum(x, y), fold(x, y), total(x),
largest(x), totals(eight vectors), splat(scalar) and, on a contiguous 1-D array, load, store, store_halves, gather,
scatter, spread and halves. Indices are not checked.
"""

import operator
import warnings
from hashlib import sha256
from inspect import unwrap
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, overload, register_model


def intrinsic(function) -> Any:
    """Numba's `intrinsic`, typed as Any: calls omit the first argument, which type checkers do not know."""
    return _intrinsic(unwrap(function))  # Numba reads source: remove the type checks that pytest wraps around functions


BYTES = 64

# `contract` lets a * b + c become one fused operation. Left out: reassociation, which would undo the rounding in exp2,
# and the flags by which LLVM assumes that there is neither NaN nor infinity.
FLAGS = ("contract",)

# 2^f = 1 + f (c1 + c2 f + …) for |f| <= 1/2, minimax in relative error (2e-9 and 2e-16) with the 1 kept exact: the
# decay of a slow state, where f is near 0, is then rounded but not biased.
POLYNOMIAL = {
    types.float32: (
        0.6931472028550825,
        0.24022647913626502,
        0.05550332471100103,
        0.009618437357826068,
        0.0013398874422273508,
        0.00015353361886834825,
    ),
    types.float64: (
        0.6931471805599492,
        0.240226506959091,
        0.05550410866448176,
        0.009618129107983068,
        0.001333355822580866,
        0.00015403529994303605,
        1.5252659423243233e-05,
        1.321565357025773e-06,
        1.020832380668799e-07,
        7.0381838538588734e-09,
    ),
}
MANTISSA_BITS = {types.float32: 23, types.float64: 52}
EXPONENT_BIAS = {types.float32: 127, types.float64: 1023}

_LANES = sha256(Path(__file__).read_bytes()).hexdigest()[:8]


class _Cache(FunctionCache):
    """Numba's cache on disk for one function, without which the function is compiled again in each process.

    Numba raises if a cached file is damaged, as after a power cut, or if the disk is full or has become read-only.
    """

    def load_overload(self, sig, target_context):
        """Return the machine code, or None, also for damaged files, which the next :meth:`save_overload` replaces."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling damaged bytes can raise anything
            self._save(self.flush)
            return None

    def save_overload(self, sig, data):
        """Write the machine code if the disk takes it."""
        self._save(lambda: super(_Cache, self).save_overload(sig, data))

    def _save(self, write):
        try:
            write()
        except OSError as error:
            _warn_uncached(str(error))
            self.disable()


_uncached: list[str] = []  # why functions are not cached


def _warn_uncached(reason: str) -> None:
    """Warn once per process."""
    _uncached.append(reason)
    if len(_uncached) == 1:
        warnings.warn(
            f"CPU kernels cannot be kept on disk ({reason}), so that every process compiles them again, which takes "
            "about fifteen seconds; set NUMBA_CACHE_DIR to a folder that can be written.",
            RuntimeWarning,
            stacklevel=3,
        )


def compiled(function):
    """Compile at the first call and keep the machine code on disk, if there is a place for it: else warn once.

    Numba's cache detects changes in the function's own file; a hash in its name makes it detect changes here too.
    """
    function = unwrap(function)
    function.__qualname__ += f"-{_LANES}"
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function)
    try:
        dispatcher._cache = _Cache(function)  # as njit(cache=True) does with Numba's own class
    except RuntimeError:  # Numba found no place: the installation is read-only, and there is no home
        _warn_uncached("neither this installation nor a cache folder of the user can be written")
    except OSError as error:
        _warn_uncached(str(error))
    return dispatcher


def inlined(function):
    """Compile into the callers.

    A function that is not inlined exists twice: compiled alone, and compiled with its caller. The process that compiles
    both runs the former, one that reads the caller from the cache the latter. LLVM may fuse different products with
    their sum in the two, so that the last bits differ.
    """
    return numba.njit(nogil=True, forceinline=True, error_model="numpy", boundscheck=False)(unwrap(function))


@inlined
def aligned(size, like):
    """Allocate an uninitialised array of `size` elements of the dtype of `like`, aligned to a cache line.

    In an unaligned array every vector would lie in two cache lines.
    """
    buffer = np.empty(size + BYTES // like.itemsize, like.dtype)
    start = -buffer.ctypes.data % BYTES // like.itemsize
    return buffer[start : start + size]


class Lanes(types.Type):
    """Numba's type of a vector of `width` floats of `dtype`."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.width = 8 * BYTES // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype} x {self.width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        scalar = ir.FloatType() if lanes.dtype is types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(scalar, lanes.width))


def _constant(vector, value):
    return ir.Constant(vector, [value] * vector.count)


def _indices(values):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), list(values))


def _pointer(context, builder, array_type, array, index):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    vector = context.get_value_type(Lanes(array_type.dtype))
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(_typing, array, index):  # noqa: ARG001 (Numba reads the names: the index is cast to intp)
    """The vector array[index : index + width]."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def store(_typing, array, index, value):  # noqa: ARG001
    """array[index : index + width] = value."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes(array.dtype)), generate


@intrinsic
def prefetch(_typing, array, index):  # noqa: ARG001
    """Fetch the cache line of array[index]; an invalid address has no effect."""

    def generate(context, builder, signature, arguments):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, integer, integer, integer])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        # for reading, in all cache levels, data
        builder.call(function, [pointer, *(ir.Constant(integer, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _splat(builder, scalar, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _indices([0] * vector.count))


@intrinsic
def splat(_typing, scalar):
    """The vector whose every element is `scalar`."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], context.get_value_type(signature.return_type))

    return Lanes(scalar)(scalar), generate


@intrinsic
def gather(_typing, array, index, step):  # noqa: ARG001
    """The vector of array[index], array[index + step] and so on."""

    def generate(context, builder, signature, arguments):
        array, index, step = arguments
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, array).data
        vector = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for i in range(vector.type.count):
            element = builder.load(builder.gep(data, [index]))
            vector = builder.insert_element(vector, element, ir.Constant(ir.IntType(32), i))
            index = builder.add(index, step)
        return vector

    return Lanes(array.dtype)(array, types.intp, types.intp), generate


@intrinsic
def scatter(_typing, array, index, step, x):  # noqa: ARG001
    """Store the elements of x at array[index], array[index + step] and so on."""

    def generate(context, builder, signature, arguments):
        array, index, step, vector = arguments
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, array).data
        for i in range(vector.type.count):
            element = builder.extract_element(vector, ir.Constant(ir.IntType(32), i))
            builder.store(element, builder.gep(data, [index]))
            index = builder.add(index, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, x), generate


@intrinsic
def spread(_typing, array, index):  # noqa: ARG001
    """The vector whose every element is array[index]: splat(array[index]) without Numba's care for negative indices."""

    def generate(context, builder, signature, arguments):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        scalar = builder.load(builder.gep(data, [arguments[1]]))
        return _splat(builder, scalar, context.get_value_type(signature.return_type))

    return Lanes(array.dtype)(array, types.intp), generate


def _add_neighbours(builder, x, y, group, span):
    """Add neighbouring groups of elements; of every `span` elements, the first half are sums of x, the others of y."""
    count = x.type.count
    first = [
        source + start + i
        for start in range(0, count, span)
        for source in (0, count)
        for pair in range(0, span, 2 * group)
        for i in range(pair, pair + group)
    ]
    second = [i + group for i in first]
    return builder.fadd(*(builder.shuffle_vector(x, y, _indices(indices)) for indices in (first, second)))


def _sums(builder, vectors, levels):
    """Merge vectors pairwise, then the last one with itself, adding neighbours; `levels` are (group, span) in turn."""
    for group, span in levels:
        vectors = vectors if len(vectors) > 1 else vectors * 2
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [_add_neighbours(builder, x, y, group, span) for x, y in pairs]
    return vectors[0]


def _within_quarters(width):
    """Levels of :func:`_sums` that leave one element per vector in each quarter: 128 bits, where shuffles are cheap."""
    quarter = width // 4
    return [(1, quarter)] * (quarter.bit_length() - 1)


@intrinsic
def fold(_typing, x, y):
    """One vector whose lower half sums to the sum of x and whose upper half sums to the sum of y."""

    def generate(_context, builder, _signature, arguments):
        return _sums(builder, arguments, [(x.width // 2, x.width)])

    return x(x, y), generate


@intrinsic
def halves(_typing, array, index):  # noqa: ARG001
    """The sums of the lower halves, then of the upper halves, of as many vectors at array[index] as half a vector has.

    Merging vectors pairwise takes a third of the operations of summing each.
    """
    lanes = Lanes(array.dtype)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        places = [builder.gep(pointer, [ir.Constant(ir.IntType(64), i)]) for i in range(lanes.width // 2)]
        vectors = [builder.load(place, align=array.dtype.bitwidth // 8) for place in places]
        return _sums(builder, vectors, [*_within_quarters(lanes.width), (lanes.width // 4, lanes.width // 2)])

    return lanes(array, types.intp), generate


@intrinsic
def store_halves(_typing, lower, i, upper, j, x):  # noqa: ARG001
    """Store the lower half of x at lower[i] and the upper half at upper[j]."""

    def generate(context, builder, signature, arguments):
        vector, size = arguments[4], x.width // 2
        for array, place, first in ((0, 1, 0), (2, 3, size)):
            half = builder.shuffle_vector(vector, vector, _indices(range(first, first + size)))
            pointer = _pointer(context, builder, signature.args[array], arguments[array], arguments[place])
            builder.store(half, builder.bitcast(pointer, half.type.as_pointer()), align=x.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(lower, types.intp, upper, types.intp, x), generate


@intrinsic
def totals(_typing, a, b, c, d, e, f, g, h):
    """The vector of the sums of eight vectors, in turn; if it has sixteen elements, it has the sums twice.

    Merging vectors pairwise takes a third of the operations of eight times `total`.
    """

    def generate(_context, builder, _signature, arguments):
        return _sums(builder, list(arguments), [*_within_quarters(a.width), *[(a.width // 4, a.width)] * 2])

    return a(a, b, c, d, e, f, g, h), generate


@intrinsic
def maximum(_typing, x, y):
    """The larger of each pair of elements, or y's if either is NaN."""

    def generate(_context, builder, _signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return x(x, y), generate


def _fold(builder, vector, combine):
    """Combine the halves of a vector, repeatedly, down to one number."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        parts = (builder.shuffle_vector(vector, vector, _indices(range(i, i + half))) for i in (0, half))
        vector = combine(*parts)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def total(_typing, x):
    """The sum of x, always added in the same order."""

    def generate(_context, builder, _signature, arguments):
        return _fold(builder, arguments[0], builder.fadd)

    return x.dtype(x), generate


@intrinsic
def largest(_typing, x):
    """The largest element of x, if none is NaN."""

    def generate(_context, builder, _signature, arguments):
        return _fold(builder, arguments[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return x.dtype(x), generate


@intrinsic
def exp2(_typing, x):
    """2^x of each element: exactly 0 below the least normal exponent, inf above the largest; NaN stays NaN."""

    def generate(_context, builder, _signature, arguments):
        (t,) = arguments
        mantissa, bias = MANTISSA_BITS[x.dtype], EXPONENT_BIAS[x.dtype]
        lowest, highest = _constant(t.type, float(-bias)), _constant(t.type, float(bias + 1))
        # NaN passes, as it compares false. The two bounds give the exponent fields 0 and all ones: 0 and inf.
        t = builder.select(builder.fcmp_ordered("<", t, lowest), lowest, t)
        t = builder.select(builder.fcmp_ordered(">", t, highest), highest, t)
        # Adding 1.5 · 2^mantissa leaves no bits for a fraction: k = round(t), and bias + k is in the lowest bits.
        rounder = _constant(t.type, 1.5 * 2.0**mantissa + bias)
        rounded = builder.fadd(t, rounder)
        f = builder.fsub(t, builder.fsub(rounded, rounder))
        value = _constant(t.type, POLYNOMIAL[x.dtype][-1])
        for coefficient in (*POLYNOMIAL[x.dtype][-2::-1], 1.0):
            product = builder.fmul(value, f, flags=FLAGS)
            value = builder.fadd(product, _constant(t.type, coefficient), flags=FLAGS)
        # Shifted to the exponent field, that integer is the number 2^k; the bits above are shifted out.
        integers = ir.VectorType(ir.IntType(x.dtype.bitwidth), x.width)
        shifted = builder.shl(builder.bitcast(rounded, integers), _constant(integers, mantissa))
        return builder.fmul(value, builder.bitcast(shifted, t.type), flags=FLAGS)

    return x(x), generate


def _arithmetic(symbol, instruction):
    """Define the operator `symbol` for two `Lanes` of one type by an LLVM instruction."""

    @intrinsic
    def operation(_typing, x, y):
        def generate(_context, builder, _signature, arguments):
            return getattr(builder, instruction)(*arguments, flags=FLAGS)

        return x(x, y), generate

    @overload(symbol)
    def implementation(x, y):
        if isinstance(x, Lanes) and x == y:
            return lambda x, y: operation(x, y)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@inlined
def sigmoid(x, one, minus_log2e):
    """1 / (1 + exp(−x)) of a vector; the other arguments are vectors of 1 and −log2 e."""
    return one / (one + exp2(minus_log2e * x))
