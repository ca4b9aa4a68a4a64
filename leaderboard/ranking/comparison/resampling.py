"""Items drawn again with replacement, the same draws for every model that was asked them.

The random numbers come from a key, through a generator whose stream is fixed (Philox), so every machine draws the same
and no entry changes another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
FOLDS = 5

Array = NDArray[np.float64]
Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """How often each item of a probe is drawn in each replicate.

    Attributes:
        sorted_items: ids of the items, sorted.
        order: places in `sorted_items`, in the order of the rows of `weights`: items of one fold stand together.
        weights: (items, 1 + replicates), each column's mean is 1; the first column, all ones, is the sample itself.
        folds: the rows of each fold. An item's fold depends on the probe's items only, and not on a replicate.
        in_fold: (items, folds), 1 over the number of all items where the item is in the fold, else 0.
    """

    sorted_items: tuple[str, ...]
    order: NDArray[np.int64]
    weights: Single
    folds: tuple[slice, ...]
    in_fold: Array

    @classmethod
    def of(cls, probe: str, items: Sequence[str], replicates: int = REPLICATES) -> Resampling:
        """The draws for a probe; they do not depend on the items' order.

        Raises:
            ValueError: no items, or one that is there twice.
        """
        if not items or len(set(items)) < len(items):
            raise ValueError(f"{probe}: {len(items)} items, of which {len(set(items))} are different")
        return _drawn(probe, tuple(sorted(items)), replicates)

    @property
    def sample(self) -> Resampling:
        """The sample itself, without replicates."""
        return replace(self, weights=self.weights[:, :1])

    def fold_sums(self, values: Array) -> Single:
        """Weighted sums over each fold's items, over the number of all items: (rows, folds, 1 + replicates).

        Args:
            values: (rows, items), items in the order of the rows of `weights`.
        """
        sums = np.empty((len(values), len(self.folds), self.weights.shape[1]), dtype=np.float32)
        values = (values / len(self.order)).astype(np.float32)
        for place, fold in enumerate(self.folds):
            np.matmul(values[:, fold], self.weights[fold], out=sums[:, place])
        return sums


_AT_A_TIME = 100
"""Replicates that are drawn at a time, so that a probe with many items takes little memory beside its weights."""


@lru_cache(16)
def _drawn(probe: str, items: tuple[str, ...], replicates: int) -> Resampling:
    # Equal folds, by position among the hashes: by the hash alone a small probe may have an empty one.
    hashed = sorted(range(len(items)), key=lambda place: _digest(f"{probe}\n{items[place]}"))
    ordered = [place for fold in range(FOLDS) for place in hashed[fold::FOLDS]]
    ends = np.cumsum([len(hashed[fold::FOLDS]) for fold in range(FOLDS)])
    folds = tuple(slice(int(end - len(hashed[fold::FOLDS])), int(end)) for fold, end in enumerate(ends))
    n = len(items)
    key = _digest("\n".join((probe, *items)))
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    in_fold = np.zeros((n, FOLDS))
    for fold, rows in enumerate(folds):
        in_fold[rows, fold] = 1 / n
    weights = np.ones((n, 1 + replicates), dtype=np.float32)
    for start in range(0, replicates, _AT_A_TIME):
        some = min(_AT_A_TIME, replicates - start)
        drawn = ((stream.random_raw(some * n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
        first = np.repeat(np.arange(some) * n, n)
        counts = np.bincount(first + drawn.astype(np.int64), minlength=some * n)
        weights[:, 1 + start : 1 + start + some] = counts.reshape(some, n).T
    return Resampling(items, np.array(ordered), weights, folds, in_fold)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
