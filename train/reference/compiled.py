"""Compiled code of the search: how it is compiled, and the one sort that it needs.

The first search on a machine compiles for half a minute; the result is kept beside the source, or below the user's
cache where that cannot be written. What only compiled code calls is compiled without a way in from Python, which takes
half as long.
"""

import numpy as np
from numba import njit

entry = njit(nogil=True, cache=True, error_model="numpy")
"""Compile a function that Python calls, too; other threads run meanwhile."""
inner = njit(  # type: ignore[call-overload]  # its stubs lack the last two
    nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Compile a function that only compiled code calls: Python that calls it is ended by the operating system."""


@inner
def sort(keys):  # type: ignore[no-untyped-def]
    """Sort int64 in place (Shell 1959, gaps of Ciura 2001); numpy's own sort takes seconds to compile for each type."""
    for gap in (57_000, 25_000, 10_000, 4_000, 1_750, 701, 301, 132, 57, 23, 10, 4, 1):
        for row in range(gap, len(keys)):
            key, place = keys[row], row
            while place >= gap and keys[place - gap] > key:
                keys[place] = keys[place - gap]
                place -= gap
            keys[place] = key


@inner
def least_first(values, most):  # type: ignore[no-untyped-def]
    """Return the places of values, the least first and of equals the first; those above `most` are left out."""
    keys = np.empty(len(values), dtype=np.int64)
    count = 0
    for place in range(len(values)):
        if values[place] <= most:
            keys[count] = np.int64(values[place] * 256) << 24 | place
            count += 1
    keys = keys[:count]
    sort(keys)
    for row in range(count):
        keys[row] &= (1 << 24) - 1
    return keys
