"""Modality drop: which of a case's sequences a patch keeps.

A distribution gives the relative probabilities that 0, 1 .. m-1 of a case's m sequences are dropped, as integers. The
sequences are then drawn without replacement, so all sets of a size are equally likely. At least one sequence stays, and
no draw has to be repeated.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import comb

from multiseg.loaders.chance import Chance

_FINE = 1 << 53


def uniform_drop(num_modalities: int, probability: float) -> list[int]:
    """n ~ U{0..m-1} are dropped (Xu et al. 2024, section 2.1).

    For m = 4 the full set stays with probability 1/4, each triple and each single with 1/16, each pair with 1/24.
    """
    return [1] * num_modalities


def no_drop(num_modalities: int, probability: float) -> list[int]:
    """Every sequence stays."""
    return [1]


def bernoulli_drop(num_modalities: int, probability: float) -> list[int]:
    """Each sequence is dropped independently with probability q, on condition that at least one stays.

    A set of k sequences stays with probability (1-q)^k q^(m-k) / (1 - q^m), so n are dropped with probability
    C(m, n) (1-q)^(m-n) q^n / (1 - q^m). This is the distribution of drawing again until one stays; a single
    sequence is never dropped. Exact to one part in 2^53.
    """
    m, q = num_modalities, probability
    weights = [comb(m, n) * (1 - q) ** (m - n) * q**n for n in range(m)]
    return [round(_FINE * weight / sum(weights)) for weight in weights]


def subsets_drop(num_modalities: int, probability: float) -> list[int]:
    """Each of the 2^m - 1 non-empty sets of sequences stays with the same probability."""
    return [comb(num_modalities, n) for n in range(num_modalities)]


DROPS: dict[str, Callable[[int, float], list[int]]] = {
    "uniform": uniform_drop,
    "none": no_drop,
    "bernoulli": bernoulli_drop,
    "subsets": subsets_drop,
}
"""Maps the number of sequences and `DrawOptions.drop_probability` to the weights of each number of dropped ones."""


def limits(name: str, num_modalities: int, probability: float) -> list[int]:
    """The cumulative weights of a distribution, for `kept`."""
    return list(accumulate(DROPS[name](num_modalities, probability)))


def kept(num_modalities: int, dropped: Sequence[int], chance: Chance) -> tuple[int, ...]:
    """The indices of the sequences that stay, in order; `dropped` are the cumulative weights of a distribution."""
    left = list(range(num_modalities))
    for _ in range(bisect_right(dropped, chance.below(dropped[-1]))):
        del left[chance.below(len(left))]
    return tuple(left)
