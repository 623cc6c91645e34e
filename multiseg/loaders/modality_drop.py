"""Which of a case's sequences a patch keeps: laws of modality drop, by name.

A law says how likely it is that 0, 1 .. m-1 of a case's m sequences are dropped, as whole numbers beside each
other; which ones is then drawn without replacement, all sets of a size alike. One at least always stays, and no
law ever has to draw again: each takes as many bits of its Chance as it has choices, and no more.
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
    """Each sequence is dropped by itself with probability q, on condition that one stays at least.

    A set of k sequences stays with probability (1-q)^k q^(m-k) / (1 - q^m), so n are dropped with
    C(m, n) (1-q)^(m-n) q^n / (1 - q^m). This is the law of drawing again until one stays, without doing so; a single
    sequence is never dropped. Exact to one part in 2^53.
    """
    m, q = num_modalities, probability
    likely = [comb(m, n) * (1 - q) ** (m - n) * q**n for n in range(m)]
    return [round(_FINE * one / sum(likely)) for one in likely]


def subsets_drop(num_modalities: int, probability: float) -> list[int]:
    """Each of the 2^m - 1 non-empty sets of sequences stays with the same probability."""
    return [comb(num_modalities, n) for n in range(num_modalities)]


DROPS: dict[str, Callable[[int, float], list[int]]] = {
    "uniform": uniform_drop,
    "none": no_drop,
    "bernoulli": bernoulli_drop,
    "subsets": subsets_drop,
}
"""From the number of sequences and `DrawOptions.drop_probability`, how likely each number of them is dropped."""


def limits(law: str, num_modalities: int, probability: float) -> list[int]:
    """The law's weights added up, as `kept` takes them."""
    return list(accumulate(DROPS[law](num_modalities, probability)))


def kept(num_modalities: int, dropped: Sequence[int], chance: Chance) -> tuple[int, ...]:
    """Which of the sequences stay, in their order, where `dropped` are the added-up weights of a law."""
    left = list(range(num_modalities))
    for _ in range(bisect_right(dropped, chance.below(dropped[-1]))):
        del left[chance.below(len(left))]
    return tuple(left)
