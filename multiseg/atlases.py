"""Meanings of the codes of anatomical tools, each mapped to the same seven tissues.

The seven are those of Himmetoglu et al. (appendix, from FreeSurfer's numbers). All have the kind "tissue", even the
lesion: it is what a tool for healthy anatomy happens to mark, which in FreeSurfer is hardly anything. Nobody looked for
lesions in these cases, so no model may learn from them that there are none (`LabelSpace.index_of` requires the kind).

Codes that a map does not list are an error, never a tissue.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from multiseg.errors import LabelError
from multiseg.labels import BACKGROUND, LabelSchema

CORTEX, BASAL_GANGLIA, WHITE, LESION = "cortical grey matter", "basal ganglia", "white matter", "lesion"
VENTRICLES, CEREBELLUM, BRAINSTEM = "ventricles", "cerebellum", "brainstem"
TISSUES = (CORTEX, BASAL_GANGLIA, WHITE, LESION, VENTRICLES, CEREBELLUM, BRAINSTEM)
IGNORED = "ignore"

Codes = tuple[int, ...]

_FREESURFER: Mapping[str, Codes] = {
    # Exterior (1, 40, 6, 45), CSF (24) and the fourth ventricle (15) are background as published.
    BACKGROUND: (0, 1, 6, 15, 24, 40, 45),
    # Published as "everything else", including 80 (non-WM hypointensities) and 85 (optic chiasm). Here it is a list:
    # the aseg's cortex, the regions of Desikan and DKT (1000s, 2000s) and of Destrieux 2009 (11100s, 12100s).
    CORTEX: (3, 42, 80, 85, *range(1000, 1036), *range(2000, 2036), *range(11100, 11176), *range(12100, 12176)),
    # Including thalamus, hippocampus and amygdala.
    BASAL_GANGLIA: (9, 10, 11, 12, 13, 17, 18, 26, 48, 49, 50, 51, 52, 53, 54, 58),
    # The published text, written for the aseg, would make wmparc's white matter (3000s, 4000s, 5001, 5002) cortex.
    WHITE: (2, 30, 41, 62, 77, *range(251, 256), *range(3000, 3036), *range(4000, 4036), 5001, 5002),
    LESION: (25, 57),
    VENTRICLES: (4, 5, 14, 31, 43, 44, 63, 72),
    CEREBELLUM: (7, 8, 46, 47),
    BRAINSTEM: (16, 28, 60),
}

_UNUSED_CORTEX = {110, 111, 126, 127, 130, 131, 158, 159, 188, 189}
"""Unused numbers between 100 and 207."""
# The numbering of Neuromorphometrics, also used by MUSE. Structures are mapped as those of the same name in FreeSurfer.
_SHARED: Mapping[str, Codes] = {
    BACKGROUND: (0, 11, 42, 43, 46),  # fourth ventricle, cerebral exterior, CSF
    # 69 is the optic chiasm.
    CORTEX: (69, *(code for code in range(100, 208) if code not in _UNUSED_CORTEX)),
    # Accumbens, amygdala, caudate, hippocampus, pallidum, putamen, thalamus; and the basal forebrain (75, 76), deep
    # grey matter below the striatum, which FreeSurfer does not have.
    BASAL_GANGLIA: (23, 30, 31, 32, 36, 37, 47, 48, 55, 56, 57, 58, 59, 60, 75, 76),
    WHITE: (44, 45, 63, 64),  # 63 and 64 are vessels, as FreeSurfer's 30 and 62
    LESION: (53, 54),
    VENTRICLES: (4, 15, 49, 50, 51, 52),
    CEREBELLUM: (38, 39, 40, 41, 71, 72, 73),  # "cerebellum exterior" (38, 39) is its cortex
    BRAINSTEM: (35, 61, 62),  # with the ventral diencephalon, as FreeSurfer's 28 and 60
}
_NEUROMORPHOMETRICS: Mapping[str, Codes] = {
    **_SHARED,
    # A few voxels in few cases of the 2012 challenge, in no list of its structures.
    IGNORED: (74, 126, 127),
}
_DLMUSE: Mapping[str, Codes] = {
    **_SHARED,
    BACKGROUND: (*_SHARED[BACKGROUND], 1),  # CSF around the brain
    # Lobes (81 to 88), fornix (89, 90), internal capsule (91 to 94) and corpus callosum (95).
    WHITE: (*_SHARED[WHITE], *range(81, 96)),
}

ATLASES: Mapping[str, Mapping[str, Codes]] = {
    "freesurfer": _FREESURFER,
    "neuromorphometrics": _NEUROMORPHOMETRICS,
    "dlmuse": _DLMUSE,
}
"""If two atlases give some codes the same meaning, the one with fewer codes comes first."""


def schema_of(codes: str, kind: str) -> LabelSchema:
    """The schema from a text: the name of an atlas, codes as in `LabelSchema.parse`, or both.

    "freesurfer,77=ignore,99=lesion" changes and extends an atlas.

    >>> schema_of("freesurfer", "tissue").names[:3]
    ('cortical grey matter', 'basal ganglia', 'white matter')

    Raises:
        LabelError: the text is invalid.
    """
    name, _, changes = (part.strip() for part in codes.partition(","))
    if "=" in name:
        return LabelSchema.parse(codes, kind)
    if name not in ATLASES:
        raise LabelError(
            f"{name!r} is neither codes with meanings, such as 1=lesion,2=ignore, nor an atlas: {', '.join(ATLASES)}."
        )
    changed = {int(code) for code in re.findall(r"(-?\d+)\s*=", changes)}
    entries = [f"{code}={_tissue(meaning)}" for code, meaning in _meanings(name).items() if code not in changed]
    entries += [
        re.sub(r"=\s*(.+)", lambda match: f"={_tissue(match[1])}", entry) for entry in changes.split(",") if entry
    ]
    return LabelSchema.parse(",".join(entries), kind)


def fitting_atlas(codes: Collection[int], among: Iterable[str] = ATLASES) -> str:
    """The atlas that has all these codes; "" if none has them, or two give them different meanings.

    >>> fitting_atlas([4, 11, 81, 101]), fitting_atlas([2, 41, 1035]), fitting_atlas([4, 11]), fitting_atlas([999])
    ('dlmuse', 'freesurfer', '', '')
    """
    meanings = {name: _meanings(name) for name in among}
    fitting = {name: tissues for name, tissues in meanings.items() if set(codes) <= tissues.keys()}
    readings = {tuple(tissues[code] for code in codes) for tissues in fitting.values()}
    return next(iter(fitting)) if len(readings) == 1 and codes else ""


def _meanings(atlas: str) -> dict[int, str]:
    return {code: tissue for tissue, codes in ATLASES[atlas].items() for code in codes}


def _tissue(meaning: str) -> str:
    return f"tissue:{meaning}" if meaning in TISSUES else meaning
