"""Checking one committed case of an open store."""

from __future__ import annotations

from multiseg.store.checks.case import verify_case
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.checks.layout import read_layout
from multiseg.store.findings import Finding
from multiseg.store.reader import Case, Store


def findings_of_case(store: Store, case: Case) -> list[Finding]:
    """What `verify` finds wrong with a case: all of its voxels are decoded.

    Faults of the database as a whole are left out.
    """
    group = store[case.database].group
    layout = read_layout(group, case.database, store.spacing_mm, Faults(case.database))
    faults = Faults(case.database, case.name)
    verify_case(layout, case.row, faults)
    return faults.found
