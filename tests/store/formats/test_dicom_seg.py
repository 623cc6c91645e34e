"""Segmentations as DICOM SEG: the mask, voxel for voxel, on the images that it was drawn on."""

from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_slices import TO_LPS, write_frames, write_slices
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from pydicom.sr.codedict import codes

from multiseg.errors import SourceError
from multiseg.labels import LabelSpace
from multiseg.store.cases import Series
from multiseg.store.formats.dicom_seg import Algorithm, write_dicom_seg
from multiseg.store.formats.dicom_source import check_same_image, read_seg_source, turned
from multiseg.store.formats.label_table import rows_of_space
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.segment_codes import codes_of

SPACE = LabelSpace.of(["lesion", "tissue:white matter", "tissue:CSF", "necrosis"])
ROWS = rows_of_space(SPACE)
ALGORITHM = Algorithm("joint", ("ab" * 32,))
SHAPE = (7, 6, 5)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.2, 0.15) @ np.diag([-0.9, -1.1, 2.5])
OBLIQUE[:3, 3] = [31.25, -12.5, 7.125]
ORDER = (3, 0, 4, 1, 2)


def voxels_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2000, SHAPE).astype(np.uint16)


def mask_of() -> np.ndarray:
    mask = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)  # no necrosis
    mask[:, :, 2] = 0
    return mask


def series_in(folder: Path) -> Series:
    return Series(tuple(sorted(folder.iterdir())))


def as_codes(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes permuted and flipped."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape)


@pytest.mark.slow
def test_a_mask_in_other_axes_comes_back_and_each_frame_names_its_slice(tmp_path: Path) -> None:
    uids = write_slices(tmp_path / "flair", voxels_of(), OBLIQUE, ORDER)
    source = read_seg_source(series_in(tmp_path / "flair"))
    np.testing.assert_allclose(source.affine, OBLIQUE, atol=1e-6)
    mask = mask_of()
    for axes in ("RAS", "PIL"):
        labels, affine = as_codes(mask, OBLIQUE, axes)
        out = tmp_path / f"{axes}.dcm"
        write_dicom_seg(out, turned(labels, affine, source, "mask.nii.gz"), ROWS, source, ALGORITHM)
        seg = highdicom.seg.segread(out)
        volume = seg.get_volume(combine_segments=True, allow_missing_positions=True).match_geometry(
            highdicom.VolumeGeometry(
                TO_LPS @ OBLIQUE, SHAPE, coordinate_system="PATIENT", frame_of_reference_uid=seg.FrameOfReferenceUID
            ),
            tol=1e-4,
        )
        np.testing.assert_array_equal(volume.array, mask)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        k = uids.index(image.ReferencedSOPInstanceUID)
        assert (mask[:, :, k] == number).any()
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient, (TO_LPS @ OBLIQUE @ [0, 0, k, 1])[:3], atol=1e-6
        )
    pairs = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pairs, mask.T)


def test_frames_of_one_file(tmp_path: Path) -> None:
    uid = write_frames(tmp_path / "flair" / "all.dcm", voxels_of(), OBLIQUE, ORDER)
    source = read_seg_source(series_in(tmp_path / "flair"))
    np.testing.assert_allclose(source.affine, OBLIQUE, atol=1e-6)
    write_nifti(tmp_path / "flair.nii.gz", *as_codes(voxels_of(), OBLIQUE, "RAS"))
    assert check_same_image(read_volume(tmp_path / "flair.nii.gz"), source) == ""
    mask = mask_of()
    write_dicom_seg(tmp_path / "seg.dcm", mask, ROWS, source, ALGORITHM)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    found = seg.get_pixels_by_source_frame(
        uid, range(1, 6), combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, mask[:, :, list(ORDER)].T)


def test_what_it_says_of_patient_model_and_structures(tmp_path: Path) -> None:
    write_slices(tmp_path / "flair", voxels_of(), OBLIQUE, PatientSex="F")
    source = read_seg_source(series_in(tmp_path / "flair"))
    write_dicom_seg(tmp_path / "seg.dcm", mask_of(), ROWS, source, ALGORITHM)
    seg, image = pydicom.dcmread(tmp_path / "seg.dcm"), source.headers[0]
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "PatientSex"):
        assert seg[name].value == image[name].value
    assert seg.PatientBirthDate in (None, "")  # the source does not say it
    assert seg.SeriesInstanceUID.startswith("2.25.")
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    assert (seg.SegmentationType, seg.SeriesNumber) == ("BINARY", 1007)
    lesion, white, csf, necrosis = seg.SegmentSequence
    for segment, label, category, kind in (
        (lesion, "lesion", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion),
        (white, "white matter", codes.SCT.Tissue, codes.SCT.WhiteMatter),
        (csf, "CSF", codes.SCT.BodySubstance, codes.SCT.CerebrospinalFluid),
        (necrosis, "necrosis", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Necrosis),
    ):
        assert segment.SegmentLabel == label
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == category.value
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == kind.value
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("multiseg: joint", seg.SoftwareVersions)
        assert "ab" * 32 in algorithm.AlgorithmParameters
    assert lesion.AnatomicRegionSequence[0].CodeValue == codes.SCT.Brain.value


def test_a_mask_without_a_voxel_is_written(tmp_path: Path) -> None:
    write_slices(tmp_path / "flair", voxels_of(), OBLIQUE)
    source = read_seg_source(series_in(tmp_path / "flair"))
    write_dicom_seg(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint8), ROWS, source, ALGORITHM)
    assert not highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.any()


def test_another_grid_is_refused(tmp_path: Path) -> None:
    write_slices(tmp_path / "flair", voxels_of(), OBLIQUE)
    source = read_seg_source(series_in(tmp_path / "flair"))
    shifted, stretched, tilted = OBLIQUE.copy(), OBLIQUE.copy(), OBLIQUE.copy()
    shifted[0, 3] += 0.3
    stretched[:3, 2] *= 1.05
    tilted[:3, :3] = nib.eulerangles.euler2mat(0.02) @ OBLIQUE[:3, :3]
    for affine in (shifted, stretched, tilted):
        with pytest.raises(SourceError, match=r"mask.nii.gz does not have the voxels .* mm apart"):
            turned(mask_of(), affine, source, "mask.nii.gz")
    with pytest.raises(SourceError, match=r"\(7, 6, 4\) voxels"):
        turned(mask_of()[..., :4], OBLIQUE, source, "mask.nii.gz")


def test_another_image_is_refused_and_a_corrected_one_is_doubted(tmp_path: Path) -> None:
    voxels = voxels_of()
    write_slices(tmp_path / "flair", voxels, OBLIQUE, ORDER)
    source = read_seg_source(series_in(tmp_path / "flair"))

    def check(array: np.ndarray) -> str:
        write_nifti(tmp_path / "image.nii.gz", *as_codes(array, OBLIQUE, "RAS"))
        return check_same_image(read_volume(tmp_path / "image.nii.gz"), source)

    skull_stripped = np.where(np.indices(SHAPE)[0] > 2, voxels, 0).astype(np.int16)
    assert check(skull_stripped) == ""
    field = np.linspace(0.9, 1.1, SHAPE[0])[:, None, None]
    assert "as after a bias correction" in check((voxels * field).astype(np.float32))
    with pytest.raises(SourceError, match="may be of another patient"):
        check(voxels_of(seed=5).astype(np.int16))
    with pytest.raises(SourceError, match="may be of another patient"):
        check(voxels[:, ::-1].astype(np.int16))


def test_a_series_that_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    write_slices(tmp_path / "flair", voxels_of(), OBLIQUE)
    series = series_in(tmp_path / "flair")
    image = pydicom.dcmread(series.files[2])
    del image.FrameOfReferenceUID
    image.save_as(series.files[2])
    with pytest.raises(SourceError, match="lacks FrameOfReferenceUID"):
        read_seg_source(series)
    series.files[2].unlink()
    with pytest.raises(SourceError, match="does not exist"):
        read_seg_source(series)
    with pytest.raises(SourceError, match="seem to be missing"):
        read_seg_source(series_in(tmp_path / "flair"))
    for name in ("a", "b"):
        write_frames(tmp_path / "two" / f"{name}.dcm", voxels_of(), OBLIQUE, ORDER)
    with pytest.raises(SourceError, match="several files with many images"):
        read_seg_source(series_in(tmp_path / "two"))


def test_codes_are_those_of_the_tables_of_dicom() -> None:
    known = {code.value for name in dir(codes.SCT) if isinstance(code := getattr(codes.SCT, name), tuple)}
    names = ("CSF", "white matter", "grey matter", "cortical grey matter", "basal ganglia", "cortex", "ventricles")
    names += ("cerebellum", "brainstem", "brain stem", "thalamus", "putamen", "hippocampus", "amygdala", "caudate")
    for name in (*names, "brain"):
        category, kind = codes_of(name, "tissue")
        assert {category.value, kind.value} <= known
        assert kind.value != codes.SCT.Tissue.value
    for name in ("oedema", "edema", "necrosis", "tumour"):
        assert {one.value for one in codes_of(name, "lesion")} <= known
        assert codes_of(name, "lesion")[1].value != codes.SCT.Lesion.value
    assert codes_of("white matter lesion", "lesion")[1].meaning == "Lesion"
    assert codes_of("cerebellar white matter", "tissue")[1].meaning == "Tissue"
