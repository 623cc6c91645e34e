"""Guess which MRI sequence a DICOM series shows from its header. A person confirms it.

Words are read as in file names (`sequence_reading`). The first of these rules that applies decides:

1.  Not a sequence: what is not MR, localisers, calibrations, projections, reformats, subtractions, phase images.
2.  ADC maps, by image type, or by name.
3.  Not a sequence: angiograms, perfusion, spectra, double inversion, STIR, tensors, functional series, maps, and
    whatever software computed, unless the image type says that it is original.
4.  Diffusion, by image type, b-value or name: DWI from b = 500 s/mm2 on; not a sequence with a smaller b.
5.  Others by name, if the echo time does not contradict it; a series called T1 FLAIR is T1, and in a double echo the
    echo time distinguishes PD from T2.
6.  Without a name, by the times: FLAIR (TI 1500 to 3500 ms, TE from 60 ms), T2 (no TI, TR from 2000, TE from
    70 ms), T1 (TR to 1200, TE to 30 ms; or TI 500 to 1300, TE to 10 ms) and PD (no TI, TR from 1800, TE to 40 ms).
7.  A T1 is T1c if a contrast agent is recorded or its name says so; if the two contradict each other, it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TypeAlias

from multiseg.sequence_reading import MIN_B, by_products_in, contrast_in, kinds_in, read_words, sequences_in
from multiseg.sequence_words import words_in

Guess: TypeAlias = tuple[str | None, str]
"""A sequence or None, and why."""


@dataclass(frozen=True)
class Acquisition:
    """How a volume was acquired, by its DICOM header; times in milliseconds, b in s/mm2."""

    description: str = ""
    protocol: str = ""
    image_type: tuple[str, ...] = ()
    modality: str = "MR"
    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    contrast: str = ""
    b_value: float | None = None


_NONE_BY_TYPE = {
    "LOCALIZER": "a localiser",
    "PROJECTION IMAGE": "a projection",
    "MIP": "a projection",
    "MNIP": "a projection",
    "MINIP": "a projection",
    "MPR": "a reformat",
    "REFORMATTED": "a reformat",
    "SUBTRACTION": "a subtraction",
    "PHASE": "a phase image",
    "PHASE MAP": "a phase image",
    "P": "a phase image",
    "FA": "a map of anisotropy",
    "TENSOR": "diffusion tensor data",
    "SCREEN SAVE": "a screen capture",
    "SCREENSHOT": "a screen capture",
}
_NO_AGENT = ("", "no", "none", "n", "0", "nil", "no contrast", "without", "ohne")
_ECHO_MS = {"FLAIR": (60.0, inf), "T1": (0.0, 40.0), "T2": (60.0, inf), "PD": (0.0, 50.0)}
"""The shortest and longest echo time of a sequence with this name."""


def guess_sequence(acquisition: Acquisition) -> Guess:
    """The sequence that a series shows, or None, and why, by the rules above."""
    acquisition = replace(acquisition, image_type=tuple(part.upper() for part in acquisition.image_type))
    words = words_in(acquisition.description)
    if not (named := sequences_in(words)) and not kinds_in(words, named):
        words = words_in(acquisition.protocol)
    for rule in _RULES:
        verdict = rule(acquisition, words)
        if verdict is not None:
            return verdict
    return None, "neither its name nor its times say it"


def _not_a_sequence(acquisition: Acquisition, words: str) -> Guess | None:
    if acquisition.modality != "MR":
        return None, f"its modality is {acquisition.modality or 'not named'}, not MR"
    kinds = [_NONE_BY_TYPE[part] for part in acquisition.image_type[2:] if part in _NONE_BY_TYPE]
    kinds += by_products_in(words, sequences_in(words))
    return (None, kinds[0]) if kinds else None


def _adc(acquisition: Acquisition, words: str) -> Guess | None:
    return ("ADC", "its image type says so") if "ADC" in acquisition.image_type else None


def _other_kind(acquisition: Acquisition, words: str) -> Guess | None:
    """Series that are not used; a word for software's products does not count for an original image."""
    kinds = kinds_in(words, sequences_in(words), derived=acquisition.image_type[:1] != ("ORIGINAL",))
    return (None, kinds[0]) if kinds else None


def _adc_by_name(acquisition: Acquisition, words: str) -> Guess | None:
    return ("ADC", "by its name") if sequences_in(words) == {"ADC"} and "TRACEW" not in acquisition.image_type else None


def _diffusion(acquisition: Acquisition, words: str) -> Guess | None:
    is_recorded = "DIFFUSION" in acquisition.image_type or (acquisition.b_value or 0) > 0
    if not (is_recorded or "DWI" in sequences_in(words)):
        return None
    if acquisition.b_value is None:
        if is_recorded:
            return "DWI", "its image type says so; its b-value is not known"
        reading = read_words(words)
        return reading.sequence, f"{reading.why}; its b-value is not known"
    b = f"b = {acquisition.b_value:g} s/mm2"
    if acquisition.b_value < MIN_B:
        return None, f"diffusion, but {b} is too small for DWI"
    return "DWI", f"diffusion, {b}"


def _by_name(acquisition: Acquisition, words: str) -> Guess | None:
    """The sequence by the words. A series called T1 FLAIR is a T1."""
    named, echo = sequences_in(words), acquisition.echo_ms
    if named == {"T1", "FLAIR"}:
        named = {"T1"}
    if named == {"PD", "T2"}:
        fitting = [name for name in ("PD", "T2") if echo is not None and _fits(name, echo)]
        return (fitting[0], f"a double echo, TE {echo:g} ms") if fitting else (None, "named both PD and T2")
    if not named:
        return None
    if len(named) > 1:
        return None, f"named {' and '.join(sorted(named))}"
    name = named.pop()
    if echo is not None and not _fits(name, echo):
        return None, f"named {name}, but TE {echo:g} ms contradicts it"
    return _with_contrast(name, "by its name", acquisition, words)


def _by_times(acquisition: Acquisition, words: str) -> Guess | None:
    echo, repetition, inversion = acquisition.echo_ms, acquisition.repetition_ms, acquisition.inversion_ms or 0
    if echo is None or repetition is None:
        return None
    fitting = {
        "FLAIR": 1500 <= inversion <= 3500 and echo >= 60,
        "T2": inversion == 0 and repetition >= 2000 and echo >= 70,
        "T1": (inversion == 0 and repetition <= 1200 and echo <= 30) or (500 <= inversion <= 1300 and echo <= 10),
        "PD": inversion == 0 and repetition >= 1800 and echo <= 40,
    }
    name = next((name for name, fits in fitting.items() if fits), None)
    times = f"by its times alone: TE {echo:g}, TR {repetition:g}" + (f", TI {inversion:g}" if inversion else "") + " ms"
    return None if name is None else _with_contrast(name, times, acquisition, words)


def _fits(name: str, echo_ms: float) -> bool:
    low, high = _ECHO_MS.get(name, (0.0, inf))
    return low <= echo_ms <= high


def _with_contrast(name: str, why: str, acquisition: Acquisition, words: str) -> Guess:
    """T1 or T1c; other sequences do not change with contrast."""
    if name != "T1":
        return name, why
    without, with_name = contrast_in(words)
    with_agent = acquisition.contrast.strip().lower() not in _NO_AGENT
    if without and (with_name or with_agent):
        agent = f"the agent {acquisition.contrast!r} is recorded" if with_agent else "its name says with contrast, too"
        return None, f"named T1 without contrast, but {agent}"
    if with_agent:
        return "T1c", f"{why}; contrast agent recorded"
    return ("T1c", f"{why}; its name says with contrast") if with_name else ("T1", why)


_RULES: tuple[Callable[[Acquisition, str], Guess | None], ...] = (
    _not_a_sequence, _adc, _other_kind, _adc_by_name, _diffusion, _by_name, _by_times,
)  # fmt: skip
