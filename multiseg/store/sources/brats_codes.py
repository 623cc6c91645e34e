"""What the numbers of BraTS labels mean, told from the codes of all cases where names do not tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiseg.errors import LabelError
from multiseg.store.findings import Finding, Severity

ANNOTATION = "tumour"
UNTIL_2021 = "1=necrosis,2=oedema,4=enhancing"
FROM_2023 = "1=necrosis,2=oedema,3=enhancing"
AFTER_TREATMENT = "1=necrosis,2=oedema,3=enhancing,4=resection cavity"
MIXED = "1=necrosis,2=oedema,3=enhancing,4=enhancing"


def convention(codes: Mapping[str, Sequence[frozenset[int]]], database: str) -> tuple[str, tuple[Finding, ...]]:
    """What 3 and 4 mean, told from the codes of all cases: the conventions share this file layout.

    A case with both has been treated: 4 is the cavity. Where no case has a 3, 4 is the enhancing tumour of the
    older convention, which people look at. Cases with a 3 and others with a 4 may be of either: that is asked.

    Raises:
        LabelError: the codes do not tell it.
    """
    with_4 = {kind for kind, own in codes.items() if any(4 in some for some in own)}
    treated = {kind for kind, own in codes.items() if any({3, 4} <= some for some in own)}
    ask = 'Look up the numbers in the description of the release, and say them: --labels "tumour:1=NAME,2=NAME,..."'
    if "PED" in with_4:
        raise LabelError(
            f"{database!r} has paediatric cases (PED) with the code 4: from 2024 on they have four structures "
            f"(enhancing, non-enhancing, cystic, oedema) in numbers of their own. {ask}"
        )
    if treated and with_4 - treated:
        raise LabelError(
            f"the code 4 seems to be the resection cavity in {', '.join(sorted(treated))}, which has it beside 3, and "
            f"enhancing tumour in {', '.join(sorted(with_4 - treated))}, which has no case with 3 and 4. Ingest them "
            f"one by one. {ask}"
        )
    if with_4 and not treated and any(3 in some for own in codes.values() for some in own):
        raise LabelError(
            f"some labels of {database!r} hold the code 3, others the code 4, and none both: is 4 the enhancing tumour "
            f"of releases until 2021 ({MIXED}), or the resection cavity of 2024 ({AFTER_TREATMENT})? Say it: --labels "
            f'"{ANNOTATION}:...".'
        )
    doubts = []
    if "PED" in codes:
        doubts.append(
            f"paediatric cases (PED) are taken to have the numbers of 2023, {FROM_2023}; those of 2024 and later have "
            f"others. {ask}"
        )
    if with_4 and not treated:
        labels = [some for own in codes.values() for some in own]
        doubts.append(
            f"{sum(4 in some for some in labels)} of {len(labels)} labels hold the code 4 and no case holds 3 and 4: "
            "taken as the convention until 2021, 4 = enhancing. If it is the resection cavity of 2024, say "
            f'--labels "{ANNOTATION}:{AFTER_TREATMENT}".'
        )
    text = AFTER_TREATMENT if treated else UNTIL_2021 if with_4 else FROM_2023
    return text, tuple(Finding(Severity.WARNING, "LABEL_CONVENTION", database, "", "", doubt) for doubt in doubts)


def convention_of_old(codes: Sequence[frozenset[int]], file: str, database: str) -> tuple[str, tuple[Finding, ...]]:
    """What 3 and 4 mean in folders of releases until 2021 with files named as later ones: enhancing tumour is one.

    Raises:
        LabelError: both occur, which no convention has for these folders.
    """
    held = frozenset(code for some in codes for code in some)
    if {3, 4} <= held:
        raise LabelError(
            f"{file} is named as BraTS from 2023 on in a folder as until 2021, and labels of {database!r} hold 3 "
            f'and 4: is 4 the enhancing tumour, and what is 3? Say it: --labels "{ANNOTATION}:1=NAME,2=NAME,...".'
        )
    text = FROM_2023 if 3 in held else UNTIL_2021
    return text, (of_mixed_names(file, text, database),)


def of_mixed_names(file: str, codes: str, database: str) -> Finding:
    message = (
        f"{file} is named by one convention of BraTS and its folder by the other, so the codes of all labels decide: "
        f'they are taken as {codes}. If they mean something else, say it: --labels "{ANNOTATION}:1=NAME,2=NAME,...".'
    )
    return Finding(Severity.WARNING, "LABEL_CONVENTION", database, "", file, message)
