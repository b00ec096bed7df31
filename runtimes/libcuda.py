"""The driver's own library, for what pycuda lacks: CUDA graphs, and four calls around contexts, streams and arrays."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from edgevtx.errors import DeviceError, RuntimeUnavailableError
from edgevtx.runtimes import host

LIBRARY = "libcuda.so.1"
_POINTER, _POINTER_TO = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)

# the functions that are called -> their arguments; each returns a CUresult
_FUNCTIONS = {
    "cuCtxPopCurrent_v2": (_POINTER_TO,),
    "cuPointerGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, _POINTER),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamBeginCapture_v2": (_POINTER, ctypes.c_int),
    "cuStreamEndCapture": (_POINTER, _POINTER_TO),
    "cuGraphInstantiateWithFlags": (_POINTER_TO, _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Library:
    """The library's functions, by name."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        for name, arguments in _FUNCTIONS.items():
            getattr(loaded, name).argtypes = arguments

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of it; a result that is not CUDA_SUCCESS raises `DeviceError`."""
        if code := getattr(self._loaded, name)(*arguments):
            text = ctypes.c_char_p()
            self._loaded.cuGetErrorName(code, ctypes.byref(text))
            raise failed(name, (text.value or b"").decode() or f"CUresult {code}")


@functools.cache
def load() -> Library:
    """Raises `RuntimeUnavailableError` where the driver is missing, or too old."""
    try:
        return Library(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError) as error:  # a driver from before CUDA 11.4 lacks a function
        raise RuntimeUnavailableError(
            f"a GPU was asked for, but NVIDIA's driver is not usable here ({host.first_line(error)}); "
            f"{host.driver_step()}"
        ) from None


def failed(name: str, words: str) -> DeviceError:
    """The error of a function of the driver, with what it said."""
    advice = host.advise(words, "after most errors of the driver a process cannot use the GPU any more: start it anew")
    return DeviceError(f"CUDA's {name} failed: {words.removeprefix(f'{name} failed: ')}; {advice}")
