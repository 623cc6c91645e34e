"""Guessing a sequence: every rule once, and what contradicts itself is never guessed."""

import pytest

from multiseg.store.sources.sequence import Acquisition, guess_sequence

NAMES = [
    ("t1_mprage_sag_p2_iso", "T1"), ("3DT1", "T1"), ("dT1W_3D_TFE", "T1"), ("Sag FSPGR BRAVO", "T1"),
    ("AX T1 FLAIR", "T1"), ("Cor T1 native", "T1"), ("T1 w/o contrast", "T1"), ("T1 pre Gd", "T1"),
    ("AX T1 POST", "T1c"), ("sag 3D T1 GD", "T1c"), ("t1_se_tra_KM", "T1c"), ("Ax T1 +C", "T1c"),
    ("t2_tirm_tra_dark-fluid", "FLAIR"), ("Ax T2 FLAIR +C", "FLAIR"), ("sag 3D FLAIR", "FLAIR"),
    ("T2W_TSE", "T2"), ("pd_tse", "PD"), ("AX T2* GRE", "T2star"), ("t2_fl2d_tra_hemo", "T2star"),
    ("SWI_Images", "SWI"), ("AX DWI", "DWI"), ("ep2d_diff_3scan_trace_p2_ADC", "ADC"),
    ("localizer", None), ("mIP_Images(SW)", None), ("Pha_Images", None), ("Mag_Images", None), ("T1 subtract", None),
    ("DTI 64 dir", None), ("3D TOF MRA", None), ("T2 STIR", None), ("ADC exponential", None), ("t1 t2 map", None),
    ("T1 T2 merged", None), ("3D SPACE", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("description", "sequence"), NAMES)
def test_by_name(description: str, sequence: str | None) -> None:
    guess, why = guess_sequence(Acquisition(description))
    assert guess == sequence, why
    assert why


@pytest.mark.parametrize(
    ("said", "sequence", "why"),
    [
        (Acquisition("ax", echo_ms=90.0, repetition_ms=4000.0), "T2", "by its times alone: TE 90, TR 4000 ms"),
        (Acquisition("ax", echo_ms=90.0, repetition_ms=9000.0, inversion_ms=2500.0), "FLAIR", "TI 2500"),
        (Acquisition("ax", echo_ms=3.0, repetition_ms=2300.0, inversion_ms=900.0), "T1", "TI 900"),
        (Acquisition("ax", echo_ms=10.0, repetition_ms=500.0), "T1", "TR 500"),
        (Acquisition("ax", echo_ms=15.0, repetition_ms=2500.0), "PD", "TE 15"),
        (Acquisition("ax", echo_ms=50.0, repetition_ms=1500.0), None, "neither"),
        (Acquisition("ax", protocol="t2 tse"), "T2", "by its name"),
        (Acquisition("t1", contrast="Agent"), "T1c", "agent recorded"),
        (Acquisition("t1", contrast="NONE"), "T1", "by its name"),
        (Acquisition("t1 native", contrast="Agent"), None, "'Agent' is recorded"),
        (Acquisition("t1 pre and post"), None, "contrast, too"),
        (Acquisition("t2 sag", echo_ms=15.0), None, "TE 15 ms contradicts"),
        (Acquisition("t1 ax", echo_ms=90.0), None, "TE 90 ms contradicts"),
        (Acquisition("ax", echo_ms=60.0, repetition_ms=9000.0, inversion_ms=2500.0), "FLAIR", "TE 60"),
        (Acquisition("ax", echo_ms=59.0, repetition_ms=9000.0, inversion_ms=2500.0), None, "neither"),
        (Acquisition("ax", echo_ms=70.0, repetition_ms=2000.0), "T2", "TE 70, TR 2000"),
        (Acquisition("ax", echo_ms=69.0, repetition_ms=2000.0), None, "neither"),
        (Acquisition("t2 sag", echo_ms=60.0), "T2", "by its name"),
        (Acquisition("t2 sag", echo_ms=59.0), None, "TE 59 ms contradicts"),
        (Acquisition("sag flair", echo_ms=60.0), "FLAIR", "by its name"),
        (Acquisition("sag flair", echo_ms=59.0), None, "TE 59 ms contradicts"),
        (Acquisition("pd t2", echo_ms=15.0), "PD", "double echo"),
        (Acquisition("pd t2", echo_ms=90.0), "T2", "double echo"),
        (Acquisition("ep2d_diff", b_value=0.0), None, "too small"),
        (Acquisition("resolve", image_type=("D", "P", "DIFFUSION", "TRACEW"), b_value=800.0), "DWI", "b = 800"),
        (Acquisition("resolve", image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), "ADC", "image type"),
        (Acquisition("t1", image_type=("DERIVED", "SECONDARY", "MPR")), None, "reformat"),
        (Acquisition("t1", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), None, "localiser"),
        (Acquisition("t1", image_type=("ORIGINAL", "PRIMARY", "P", "ND")), None, "phase"),
        (Acquisition("t1", modality="CT"), None, "modality is CT"),
    ],
)
def test_by_what_the_header_says(said: Acquisition, sequence: str | None, why: str) -> None:
    guess, reason = guess_sequence(said)
    assert guess == sequence, reason
    assert why in reason
