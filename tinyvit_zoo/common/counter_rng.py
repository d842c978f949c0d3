"""Random numbers that do not depend on library versions, device, order of use or number of processes.

NumPy guarantees the same stream for its bit generators only, not for `permutation` or `choice` (NEP 19), and torch
guarantees none. Here every number is a hash of the place where it is used: the output function of SplitMix64 (Steele,
Lea and Flood 2014, "Fast splittable pseudorandom number generators") over a key and a counter.
"""

import numpy as np

__all__ = ['child_key', 'permutations', 'uniform']

GAMMA = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
IN_CACHE = 2**14  # numbers computed at a time, few enough for the processor cache


def child_key(key: int | np.ndarray, *path: int | np.ndarray) -> np.ndarray:
    """Derive key(s) for a path under `key`, such as (episode, class); broadcasts.

    Args:
        key: Seed, or uint64 key(s).
        *path: Indices from the outermost to the innermost level, at least 0.

    Returns:
        uint64 array, 0-dimensional for plain numbers.
    """
    keys = _mix(_uint64(key))
    for place in path:
        with np.errstate(over='ignore'):  # NumPy warns when scalars wrap around, though not arrays
            keys = _mix(np.asarray(keys + (_uint64(place) + np.uint64(1)) * np.uint64(GAMMA)))
    return keys


def permutations(keys: np.ndarray, n: int) -> np.ndarray:
    """One permutation of 0..n-1 for every key, each equally likely (up to n / 2^64).

    Args:
        keys: uint64 of any shape.
        n: Length of a permutation, below 2^31.

    Returns:
        int64 (*keys.shape, n).
    """
    keys = np.asarray(keys)
    flat, places = keys.reshape(-1), np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(1, int(n - 1).bit_length())) - 1)
    orders = np.empty((len(flat), n), dtype=np.int64)
    rows = max(1, IN_CACHE // n)
    for start in range(0, len(flat), rows):
        bits = _bits(flat[start : start + rows], n)
        bits &= ~low
        bits |= places  # no two are equal, so every sorting algorithm gives the same order
        bits.sort(axis=-1)
        bits &= low
        orders[start : start + rows] = bits
    return orders.reshape(*keys.shape, n)


def uniform(keys: np.ndarray, n: int) -> np.ndarray:
    """n numbers in [0, 1) with 53 random bits for every key: float64 (*keys.shape, n)."""
    return (_bits(keys, n) >> np.uint64(11)) * 2.0**-53


def _bits(keys: np.ndarray, n: int) -> np.ndarray:
    counters = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GAMMA)
    return _mix(_uint64(keys)[..., None] + counters)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, in place; products wrap around by design."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _uint64(x: int | np.ndarray) -> np.ndarray:
    """As an array of its own; negative seeds wrap around."""
    return np.array(x & MASK if isinstance(x, int) else x, dtype=np.uint64)
