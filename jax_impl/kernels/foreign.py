"""NumPy functions as operations of compiled JAX programs on a CPU, by XLA's foreign function interface (FFI).

XLA calls a C function with a structure of pointers to inputs and outputs (``xla/ffi/api/c_api.h``, version 0.3). Here
ctypes turns a Python function into that C function. Nothing is copied, and XLA may call from any of its threads. Unlike
``jax.pure_callback``, no JAX arrays are made, which could wait for the thread that waits for the callback.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

import jax
import numpy as np
from jax import Array

#: Version of the FFI that defines the structures below; XLA rejects functions of another major version.
VERSION = (0, 3)
METADATA = 1  # type of the extension by which XLA asks for the version instead of calling
DTYPES: dict[int, np.dtype[Any]] = {11: np.dtype(np.float32), 12: np.dtype(np.float64)}
RESOURCE_EXHAUSTED, INTERNAL = 8, 13  # error codes


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("dtype", c_int32),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Version(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension_start", c_void_p), ("major", c_int32), ("minor", c_int32))


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version))


class _Extension(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("type", c_int32),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


class _Error(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("message", c_char_p),
        ("code", c_int32),
    )


_create_error = ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))


class _Api(Structure):  # the first fields only
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", _create_error),
    )


class _CallFrame(Structure):  # the first fields only
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int32),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
    )


_handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))
_registered: list[Any] = []  # keeps alive the functions whose addresses XLA holds


def operation(name: str, function: Callable[..., None]) -> Callable[..., Any]:
    """Register ``function(*inputs, *outputs)``, which fills its outputs, as an XLA operation ``name``.

    Returns a function (shapes, *inputs) of JAX arrays whose results have these shapes; all arrays are float32 or all
    float64. An exception of ``function`` becomes a ``JaxRuntimeError`` of the computation. Raises ``JaxRuntimeError``
    if this XLA has another version of the FFI.
    """

    def called(frame: Any) -> int | None:
        call = frame.contents
        if call.extension_start and call.extension_start.contents.type == METADATA:
            version = call.extension_start.contents.metadata.contents.version
            version.major, version.minor = VERSION
            return None
        try:
            function(*_arrays(call.inputs), *_arrays(call.outputs))
        except BaseException as error:  # exceptions must not leave a C function
            code = RESOURCE_EXHAUSTED if isinstance(error, MemoryError) else INTERNAL
            message = f"{name}: {type(error).__name__}: {error}".encode()
            report = _Error(ctypes.sizeof(_Error), None, message, code)
            return call.api.contents.create_error(ctypes.byref(report))
        return None

    handler = _handler(called)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.cast(handler, c_void_p)), platform="cpu")
    _registered.append(handler)

    def apply(shapes: tuple[tuple[int, ...], ...], *inputs: Array) -> Any:
        """Return the results with these shapes, in the dtype of the first input."""
        results = tuple(jax.ShapeDtypeStruct(shape, inputs[0].dtype) for shape in shapes)
        return jax.ffi.ffi_call(name, results)(*inputs)

    return apply


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    return [_array(buffers.buffers[i].contents) for i in range(buffers.size)]


def _array(buffer: _Buffer) -> np.ndarray:
    """View a buffer's memory as a NumPy array."""
    dtype, shape = DTYPES[buffer.dtype], tuple(buffer.dims[: buffer.rank])
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.frombuffer((c_char * (math.prod(shape) * dtype.itemsize)).from_address(buffer.data), dtype).reshape(shape)
