"""Types of kernels' arguments: each says to numba and to readers what a kernel takes.

Arrays are in C order; ``Rows`` have two dimensions.
"""

from __future__ import annotations

from typing import Annotated, Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Index = Annotated[int, numba.int64]
Flag = Annotated[bool, numba.boolean]
Real = Annotated[float, numba.float64]
Single = Annotated[np.float32, numba.float32]
Key = Annotated[np.uint64, numba.uint64]

Bytes = Annotated[Array, numba.uint8[::1]]
ByteRows = Annotated[Array, numba.uint8[:, ::1]]
Bits16 = Annotated[Array, numba.uint16[::1]]
Bits32 = Annotated[Array, numba.uint32[::1]]
BitRows = Annotated[Array, numba.uint32[:, ::1]]
Keys = Annotated[Array, numba.uint64[::1]]
Shorts = Annotated[Array, numba.int32[::1]]
ShortRows = Annotated[Array, numba.int32[:, ::1]]
Ints = Annotated[Array, numba.int64[::1]]
IntRows = Annotated[Array, numba.int64[:, ::1]]
Singles = Annotated[Array, numba.float32[::1]]
Reals = Annotated[Array, numba.float64[::1]]
RealRows = Annotated[Array, numba.float64[:, ::1]]
