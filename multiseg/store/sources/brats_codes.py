"""What the codes of BraTS labels mean, inferred from the codes of all cases if names do not say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiseg.errors import LabelError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_types import finding

ANNOTATION = "tumour"
UNTIL_2021 = "1=necrosis,2=oedema,4=enhancing"
FROM_2023 = "1=necrosis,2=oedema,3=enhancing"
AFTER_TREATMENT = "1=necrosis,2=oedema,3=enhancing,4=resection cavity"
MIXED = "1=necrosis,2=oedema,3=enhancing,4=enhancing"


def new_convention(codes: Mapping[str, Sequence[frozenset[int]]], database: str) -> tuple[str, list[Finding]]:
    """What 3 and 4 mean in folders named as from 2023 on, by the codes of all cases of each kind ("GLI"), and warnings.

    A case with both is after treatment: 4 is the cavity. If no case has a 3, 4 is taken as the enhancing tumour of the
    older convention, with a warning. If some have a 3 and others a 4, the user has to say it.

    Raises:
        LabelError: the codes do not say it.
    """
    with_4 = {kind for kind, labels in codes.items() if any(4 in label for label in labels)}
    treated = {kind for kind, labels in codes.items() if any({3, 4} <= label for label in labels)}
    all_labels = [label for labels in codes.values() for label in labels]
    ask = 'Look up the codes in the description of the release, and give them: --labels "tumour:1=NAME,2=NAME,..."'
    if "PED" in with_4:
        raise LabelError(
            f"{database!r} has paediatric cases (PED) with the code 4: from 2024 on they have four structures "
            f"(enhancing, non-enhancing, cystic, oedema) with other codes. {ask}"
        )
    if treated and with_4 - treated:
        raise LabelError(
            f"the code 4 seems to be the resection cavity in {', '.join(sorted(treated))}, which also has 3, and "
            f"enhancing tumour in {', '.join(sorted(with_4 - treated))}, which has no case with 3 and 4. Ingest them "
            f"separately. {ask}"
        )
    if with_4 and not treated and any(3 in label for label in all_labels):
        raise LabelError(
            f"some labels of {database!r} have the code 3, others the code 4, and none both: is 4 the enhancing tumour "
            f"of releases until 2021 ({MIXED}), or the resection cavity of 2024 ({AFTER_TREATMENT})? Use --labels "
            f'"{ANNOTATION}:...".'
        )
    doubts = []
    if "PED" in codes:
        doubts.append(
            f"paediatric cases (PED) are read with the codes of 2023, {FROM_2023}; those of 2024 and later have "
            f"others. {ask}"
        )
    if with_4 and not treated:
        doubts.append(
            f"{sum(4 in label for label in all_labels)} of {len(all_labels)} labels have the code 4 and none has 3 and "
            "4: read by the convention until 2021, 4 = enhancing. If it is the resection cavity of 2024, use "
            f'--labels "{ANNOTATION}:{AFTER_TREATMENT}".'
        )
    text = AFTER_TREATMENT if treated else UNTIL_2021 if with_4 else FROM_2023
    return text, [finding(Severity.WARNING, "LABEL_CONVENTION", doubt) for doubt in doubts]


def old_convention(codes: Sequence[frozenset[int]], file: str, database: str) -> tuple[str, list[Finding]]:
    """What 3 and 4 mean in folders named as until 2021 with files named as later: one is the enhancing tumour.

    Raises:
        LabelError: both occur, which no convention has.
    """
    all_codes = frozenset(code for label in codes for code in label)
    if {3, 4} <= all_codes:
        raise LabelError(
            f"{file} is named as BraTS from 2023 on in a folder as until 2021, and labels of {database!r} have 3 "
            f'and 4: is 4 the enhancing tumour, and what is 3? Use --labels "{ANNOTATION}:1=NAME,2=NAME,...".'
        )
    text = FROM_2023 if 3 in all_codes else UNTIL_2021
    return text, [warn_of_mixed_names(file, text)]


def warn_of_mixed_names(file: str, codes: str) -> Finding:
    message = (
        f"{file} is named by one convention of BraTS and its folder by the other, so the codes of all labels decide: "
        f'they are read as {codes}. If that is wrong, use --labels "{ANNOTATION}:1=NAME,2=NAME,...".'
    )
    return finding(Severity.WARNING, "LABEL_CONVENTION", message, file=file)
