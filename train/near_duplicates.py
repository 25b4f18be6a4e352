"""Prompts that are equal, or nearly so, found in time linear in their number.

Near means a Jaccard similarity of word 5-grams of at least a threshold. Candidates come from MinHash signatures cut into
bands (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4: texts of similarity s share a band
with probability 1 - (1 - s^ROWS)^BANDS) and are then compared exactly. Whatever is found near is joined: a group is a
connected component, so that of three texts in a row of small changes the first and the last are never told apart. The hash
functions are fixed: the result depends on the texts and their order alone.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

from train.filters import words

SHINGLE = 5
BANDS, ROWS = 25, 6
"""Similarity 0.8: found with probability 0.9995; 0.5: compared in vain with probability 0.32."""
FIRST, NEIGHBOURS = 8, 8
"""Texts made from one template share bands with thousands of others. Within a band a text is compared with the first FIRST of
those that share it and with the NEIGHBOURS before it: what bounds the time per text."""


class PromptIndex:
    """Numbers prompts; like ones are in one group. `threshold` null: a group is what is equal after normalisation.

    Memory per different prompt: 4 bytes a word and about 500 more.
    """

    def __init__(self, threshold: float | None = 0.8):
        self.threshold = threshold
        self._numbers: dict[bytes, int] = {}
        self._shingles: list[Any] = []
        self._signatures: list[Any] = []
        self._parents: list[int] = []

    def add(self, text: str, system: str = "") -> int:
        """The number of a prompt: an earlier one's when it is equal after normalisation, else a new number.

        `system` sets prompts apart but is not compared: a long one that many prompts share would make them all alike.
        """
        tokens = words(text) or [text.strip()]
        exact = hashlib.blake2b(" ".join([*words(system), *tokens]).encode(), digest_size=16).digest()
        if exact not in self._numbers:
            self._numbers[exact] = len(self._numbers)
            if self.threshold is not None:
                hashes = shingle_hashes(tokens)
                self._shingles.append((hashes >> 32).astype("uint32"))  # among 10,000 a false match has odds of 1 in 43
                self._signatures.append(_signature(hashes))
        return self._numbers[exact]

    def group(self, number: int) -> int:
        """The smallest number among the prompts that are like this one, of all that were added so far."""
        if len(self._parents) < len(self._numbers):
            self._join_all()
        return self._root(number)

    @property
    def groups(self) -> int:
        return len({self.group(number) for number in range(len(self._numbers))})

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def _join_all(self) -> None:
        import numpy as np

        self._parents = list(range(len(self._numbers)))
        if not self._signatures:
            return
        signatures = np.stack(self._signatures)
        for band in range(BANDS):
            order = np.argsort(signatures[:, band], kind="stable")
            ends = np.flatnonzero(np.diff(signatures[order, band])) + 1
            starts = np.concatenate([[0], ends])
            lengths = np.diff(np.concatenate([starts, [len(order)]]))
            for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
                self._join_bucket(order[start : start + length].tolist())

    def _join_bucket(self, members: list[int]) -> None:
        """Join what is near among the texts that share a band."""
        for place, number in enumerate(members):
            before = max(0, place - NEIGHBOURS)
            for other in (*members[before:place], *members[: min(FIRST, before)]):
                one, two = sorted((self._root(number), self._root(other)))
                if one != two and _similarity(self._shingles[number], self._shingles[other]) >= self.threshold:
                    self._parents[two] = one


def near_any(held_out: Iterable[str], texts: Iterable[str], threshold: float) -> list[bool]:
    """Of each text, whether it is near (similarity of at least `threshold`) to any of the held-out ones. Exact: no sampling.

    Holds the shingles of `held_out` in memory (8 bytes each, twice) and looks every text up in them.
    """
    import numpy as np

    sets = [shingle_hashes(words(text) or [text.strip()]) for text in held_out]
    if not sets:
        return [False for _ in texts]
    sizes = np.array([len(one) for one in sets])
    keys, owners = np.concatenate(sets), np.repeat(np.arange(len(sets)), sizes)
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    found = []
    for text in texts:
        hashes = shingle_hashes(words(text) or [text.strip()])
        first, last = np.searchsorted(keys, hashes, "left"), np.searchsorted(keys, hashes, "right")
        hit = last > first
        if not hit.any():
            found.append(False)
            continue
        matched = np.concatenate([owners[i:j] for i, j in zip(first[hit], last[hit], strict=True)])
        shared = np.bincount(matched, minlength=len(sets))
        found.append(bool((shared >= threshold * (len(hashes) + sizes - shared)).any()))
    return found


def shingle_hashes(tokens: Sequence[str]) -> Any:
    """Sorted different hashes [uint64] of a text's word 5-grams; of the whole text when it has fewer words."""
    import numpy as np

    values = np.array([_word_hash(token) for token in tokens], np.uint64)
    length = min(SHINGLE, len(tokens))
    grams = np.zeros(len(tokens) - length + 1, np.uint64)
    for offset in range(length):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + len(grams)]
        grams ^= grams >> np.uint64(31)
    return np.unique(grams * np.uint64(0xBF58476D1CE4E5B9))


@lru_cache(1 << 18)
def _word_hash(token: str) -> int:
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest())


@cache
def _multipliers() -> Any:
    """Odd multipliers [BANDS * ROWS, uint64] of the hash functions."""
    import numpy as np

    return np.random.default_rng(0).integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)


def _signature(hashes: Any) -> Any:
    """One number for each band [BANDS, uint64]: equal when the MinHash values of all its rows are."""
    import numpy as np

    mixed = hashes[None, :] * _multipliers()[:, None]
    rows = (mixed ^ (mixed >> np.uint64(29))).min(axis=1).reshape(BANDS, ROWS)
    keys = np.zeros(BANDS, np.uint64)
    for row in rows.T:
        keys = (keys ^ row) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _similarity(one: Any, other: Any) -> float:
    """Jaccard similarity of two sorted sets of hashes."""
    import numpy as np

    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
