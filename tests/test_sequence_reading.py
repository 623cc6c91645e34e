"""What the words of a name tell: the sequence, that it is none of ours, or that it is open; and the same for DICOM."""

import pytest

from multiseg.modalities import _SPELLINGS
from multiseg.sequence_reading import changes_sequence, read_name, read_role
from multiseg.store.sources.sequence import Acquisition, guess_sequence

TOLD = {
    "T1": (
        "T1 t1n T1_pre_contrast T1wPre preT1 "
        "T1_precontrast T1_nativ T1_ohne_KM T1_wo_contrast T1_w_o T1_without_contrast "
        "T1_sans_gado T1_sans_injection T1_sin_contraste T1_sem_contraste T1_senza_mdc T1_C- T1_noKM T1_unenhanced "
        "T1_non_contrast_enhanced t1_blade_tra Sag_CUBE_T1 01_t1_mprage_sag_p2_iso "
        "MPRAGE FSPGR t1_ir_fspgr 3DT1 T1_1mm "
        "T1_postop T1_post_op T1_pre_surgery T1_native_space "
        "T1_skull_stripped T1_without_skull T1_brain T1_fast_spin_echo"
    ),
    "T1c": (
        "t1c t1_mprage_KM T1KM t1Gd postT1 T1Post "
        "T1_Post1 T1_post_fs T1+C T1_+C T1_C+ t1_space_sag_p2_iso_KM T1_mit_KM "
        "T1_nach_KM T1_avec_gado T1_injecte T1_apres_injection "
        "T1_con_contraste T1_con_mdc T1_pós_contraste T1_enhanced "
        "T1_Gadovist ceT1w T1Contrast t1_vibe_fs_tra_KM"
    ),
    "FLAIR": "t2f T2FLAIR FLAIRnorm t2_tirm_tra_dark-fluid t2_spc_da-fl_sag_p2_iso Sag_CUBE_FLAIR FLAIR_Gd 3D_FLAIR",
    "T2": "t2w 301_t2_tse t2_blade_tra T2_fast_SE t2_space_sag",
    "T2star": "T2_star T2star T2-GRE t2_gre_tra t2_fl2d_tra_hemo",
    "SWI": "SWI SWAN t2_swi3d_tra_p2 SWI_Images",
    "DWI": "dwi dwi_b1000 ep2d_diff_3scan_trace_p2",
    "ADC": "adc adc_map ep2d_diff_ADC dADC",
    "PD": "PD pd_tse PDw",
    "T1IR": "T1_IR T1IR",
}
NONE = (
    # contradictions, two sequences, and words that nobody knows
    "T1_pre_post t1c_pre PD_T2 T1_T2 P1_T1_FLAIR PD_001_T1 T1_to_FLAIR SWI_T1 T1_DWI dwi_b0_b1000 T1_abc T1_mit diff "
    # what a scanner makes beside scans, and other kinds of MR
    "SWI_minIP SWI_mIP minipSWI SWI_phase SWI_mag Pha_Images T2_phase "
    "TOF_MRA MRA_T1 MRV ce_mra T2_STIR STIR DIR PSIR "
    "MP2RAGE_UNI mp2rage_INV1 T1map T1_map T2_map R2star R2* QSM "
    "perf rCBV rCBV_T1 CBF T1_subtraction T1_sub T1rho MTR "
    "T1_MT eADC exp_adc dwi_b0 FA FA_dwi dwi_MD colFA RD dti_trace fieldmap localizer fat_T1 PET_T1 CT bold asl "
    # what software computes
    "mprage_FAST T1_pveseg T1_pve_0 T1_firstseg samseg_T1 T1_samseg LST_FLAIR ples_lpa_mFLAIR FLAIR_predicted "
    "T1_warpfield T1_1Warp T1_0GenericAffine T1_jacobian y_T1 c1T1 rc1T1 wc1T1 mwp1T1 T1Seg T1_mask T1_brain_mask "
    "lesion_on_FLAIR FLAIR_hypermapp3r T1_synthseg T1_csf T1_mixeltype "
    "T1_biasfield T1_probability T1_std syn_T1 T1_atlas "
    "T1_thickness FLAIR_uncertainty FLAIR_WMH FLAIR_gt T1_contour FLAIR_thresholded T1_inpainted T1_deformation"
)
CASES = [(name, sequence) for sequence, names in TOLD.items() for name in names.split()]


@pytest.mark.parametrize(("name", "sequence"), CASES)
def test_names_that_tell(name: str, sequence: str) -> None:
    assert read_name(f"pat07_{name}.nii.gz").sequence == sequence
    assert read_role(name).sequence == sequence


@pytest.mark.parametrize("name", NONE.split())
def test_names_of_no_scan_of_ours_and_open_ones(name: str) -> None:
    reading = read_name(f"{name}.nii.gz")
    assert (reading.sequence, read_role(name).sequence) == (None, None)
    assert reading.why


@pytest.mark.parametrize(("name", "sequence"), CASES)
def test_a_series_of_the_same_words_is_the_same(name: str, sequence: str) -> None:
    assert guess_sequence(Acquisition(name))[0] == sequence


# A series has an echo time for a double echo, and a scanner calls a T1 FLAIR so; what is scanned has no unknown words.
@pytest.mark.parametrize("name", sorted(set(NONE.split()) - {"P1_T1_FLAIR", "T1_to_FLAIR", "T1_abc", "T1_mit"}))
def test_a_series_of_the_words_of_none_is_none(name: str) -> None:
    assert guess_sequence(Acquisition(name))[0] is None


@pytest.mark.parametrize(
    ("spelling", "name"), [(s, name) for name, own in _SPELLINGS.items() for s in own if s != "gado"]
)
def test_the_spellings_of_databases_are_read_alike(spelling: str, name: str) -> None:
    assert read_role(spelling).sequence == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mprage_FAST", "named T1, but also a segmentation, or a part of one"),
        ("T1_pre_post", "named T1 both with and without contrast"),
        ("T1_abc", "named T1, but 'abc' is unknown"),
        ("PD_T2", "named PD and T2"),
        ("dwi_b50", "named DWI, but b = 50 s/mm2 is too small for it"),
        ("SWI_minIP", "named SWI, but also a projection, reformat or subtraction"),
    ],
)
def test_the_reason_is_said(name: str, why: str) -> None:
    assert read_name(f"{name}.nii").why == why


def test_a_patient_may_have_any_name_but_a_role_may_not() -> None:
    for patient in ("Miller", "p1", "c1", "s3", "sub-01", "20190304"):
        assert read_name(f"{patient}_T1.nii.gz").sequence == "T1"
    assert read_role("Miller_T1").sequence is None


def test_words_of_a_case_that_would_change_its_sequence() -> None:
    assert changes_sequence("post", "T1")
    assert not changes_sequence("post", "FLAIR")
    assert not changes_sequence("Miller", "T1")
    assert not changes_sequence("AD", "T1")
