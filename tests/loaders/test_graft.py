"""Lesions grafted into healthy anatomy: what is pasted where, what is refused; a resumed training sees the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSchema, LabelSpace
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.loaders.graft import (
    Healthy,
    Lesion,
    check_graftable,
    graft,
    has_lesion,
    load_healthy,
    load_lesion,
    paste,
    share_outside,
)
from multiseg.loaders.graft_source import Grafted, Grafts
from multiseg.modalities import ModalityAxis
from multiseg.store.cases import CaseFiles
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.ingest import ingestion
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.template import Place
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.source_types import DatabaseFiles
from multiseg.training.prepared_run import _grafts
from multiseg.training.run_folder import TrainOptions

SHAPE = (12, 10, 8)
AXIS = ModalityAxis(("T1", "FLAIR"))
SPACE = LabelSpace.of(["tissue:CSF", "tissue:WM"])
SHIFT_MM = (4.0, -2.0, 0.0)


def grid(shift: tuple[float, ...] = (0, 0, 0), spacing: float = 2.0) -> Grid:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = shift
    return Grid(affine, SHAPE)


def lesion(shift: tuple[float, ...] = (0, 0, 0), modalities: tuple[str, ...] = ("T1",)) -> Lesion:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:7, 3:6, 2:5] = True
    images = np.stack([np.arange(mask.size, dtype=np.float32).reshape(SHAPE) + 1000 for _ in modalities])
    return Lesion(modalities, images, mask, grid(shift))


def healthy(modalities: tuple[str, ...] = ("T1",), brain: np.ndarray | None = None) -> Healthy:
    images = np.stack([np.full(SHAPE, -1.0 - n, dtype=np.float32) for n, _ in enumerate(modalities)])
    return Healthy(modalities, images, np.ones(SHAPE, dtype=bool) if brain is None else brain, grid())


def test_inside_the_mask_is_the_lesion_and_outside_the_healthy_image() -> None:
    grafted = graft(lesion(), healthy())
    assert grafted is not None
    one = lesion()
    np.testing.assert_array_equal(grafted.lesion, one.mask)
    np.testing.assert_array_equal(grafted.images[0][one.mask], one.images[0][one.mask])
    assert (grafted.images[0][~one.mask] == -1).all()


def test_the_lesion_goes_through_the_template() -> None:
    """4 mm to the right in the template is two voxels along i; 2 mm to the back one along j."""
    grafted = graft(lesion(SHIFT_MM), healthy())
    assert grafted is not None
    np.testing.assert_array_equal(grafted.lesion, np.roll(lesion().mask, (2, -1), (0, 1)))
    assert grafted.images[0][6, 2, 2] == lesion().images[0][4, 3, 2]


def test_a_smaller_head_gets_a_smaller_lesion() -> None:
    """A healthy brain with voxels of 2 mm that are 4 mm in the template."""
    small = Healthy(("T1",), healthy().images, healthy().brain, grid(spacing=4.0))
    grafted = graft(lesion(), small)
    assert grafted is not None
    # 27 voxels of 2 mm fill 3.4 voxels of 4 mm; which are more than half full depends on where they are.
    assert 1 <= grafted.lesion.sum() <= 8
    assert grafted.lesion[2:4, 1:3, 1:3].sum() == grafted.lesion.sum()


@pytest.mark.parametrize(("first", "is_refused"), [(4, False), (5, True)])
def test_a_lesion_with_more_than_a_fifth_outside_the_brain_is_refused(first: int, is_refused: bool) -> None:
    brain = np.ones(SHAPE, dtype=bool)
    brain[:first] = False
    outside = share_outside(lesion(), brain, grid())
    assert outside == pytest.approx(0 if first == 4 else 1 / 3)
    assert (graft(lesion(), healthy(brain=brain)) is None) == is_refused


def test_a_lesion_beyond_the_grid_counts_as_outside_and_none_leaves_the_brain() -> None:
    assert share_outside(lesion((16, 0, 0)), healthy().brain, grid()) == pytest.approx(1)
    assert share_outside(lesion((10, 0, 0)), healthy().brain, grid()) == 0
    assert share_outside(lesion((12, 0, 0)), healthy().brain, grid()) == pytest.approx(1 / 3)
    assert paste(lesion((60, 0, 0)), healthy()) is None
    brain = np.ones(SHAPE, dtype=bool)
    brain[4, 3, 2] = False
    grafted = graft(lesion(), healthy(brain=brain))
    assert grafted is not None
    assert not grafted.lesion[4, 3, 2]
    assert grafted.images[0][4, 3, 2] == -1


def test_only_shared_sequences_are_given() -> None:
    grafted = graft(lesion(modalities=("FLAIR", "T1")), healthy(("T1", "T2")))
    assert grafted is not None
    assert grafted.modalities == ("T1",)
    with pytest.raises(DataError, match="lesion has FLAIR, the healthy case T1"):
        graft(lesion(modalities=("FLAIR",)), healthy())


def scans(folder: Path, name: str, sequences: tuple[str, ...], label: str) -> CaseFiles:
    """A brain that is the whole image, with a lesion in its middle or its halves as tissues."""
    rng, affine = np.random.default_rng([*name.encode()]), np.diag([2.0, 2.0, 2.0, 1.0])
    codes = np.zeros(SHAPE, dtype=np.uint8)
    if label == "lesion":
        codes[4:7, 3:6, 2:5] = 1
    else:
        codes[:6], codes[6:] = 1, 2
    paths = {}
    for sequence in sequences:
        paths[sequence] = folder / f"{name}-{sequence}.nii"
        write_nifti(paths[sequence], rng.normal(100, 10, SHAPE).astype(np.float32), affine)
    path = folder / f"{name}-{label}.nii"
    write_nifti(path, codes, affine)
    return CaseFiles(name, paths, {label: path}, split="train")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two cases with lesions, two healthy ones, one more database without a template."""
    folder = tmp_path_factory.mktemp("graft")
    url, brain = folder / "brain.zarr", folder / "template.nii"
    write_nifti(brain, np.ones((11, 11, 11), dtype=np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))
    tumours = [scans(folder, name, ("T1", "FLAIR"), "lesion") for name in ("L1", "L2")]
    people = [scans(folder, name, ("T1",), "tissue") for name in ("H1", "H2")]
    others = [scans(folder, "O1", ("T1",), "tissue")]
    schemas = {
        "lesion": LabelSchema.parse("1=tumour", "lesion"), "tissue": LabelSchema.parse("1=CSF,2=WM", "tissue"),
    }  # fmt: skip
    files = [
        DatabaseFiles("tumours", "glioma", tuple(tumours), {"lesion": schemas["lesion"]}),
        DatabaseFiles("people", "healthy", tuple(people), {"tissue": schemas["tissue"]}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingestion, "place_in", lambda template, prepared: Place(np.eye(4)))
        ingest(files, url, IngestOptions(spacing_mm=(2.0,) * 3, template=str(brain)))
    other = DatabaseFiles("other", "healthy", tuple(others), {"tissue": schemas["tissue"]})
    ingest([other], url, IngestOptions(spacing_mm=(2.0,) * 3))
    return open_store(str(url))


def stream(store: Store, seed: int = 0) -> PatchStream:
    draw = DrawOptions(patch=(8, 8, 8), lesion_share=0.0, drop="none", seed=seed)
    options = StreamOptions(batch_size=4, workers=0, draw=draw)
    return PatchStream(store, AXIS, SPACE, options, databases=("people", "other"))


def drawn(store: Store, batches: Iterator[Batch]) -> list[Grafted]:
    grafts = Grafts(store, AXIS, ["tumours"], ["people"], seed=3)
    return [grafts.draw(batch) for batch in batches]


@pytest.mark.slow
def test_patches_get_lesions_and_keep_their_anatomy(store: Store) -> None:
    names = set()
    for grafted in drawn(store, stream(store).batches(0, 8)):
        healthy_images, pasted = grafted.healthy.images, grafted.pasted.images
        assert torch.equal(grafted.pasted.target, grafted.healthy.target)
        assert torch.equal(grafted.pasted.present, grafted.healthy.present)
        for sample, name in enumerate(grafted.lesion_cases):
            inside: Tensor = grafted.lesion[sample]
            assert bool(name) == bool(inside.any()) == bool(grafted.has_lesion[sample])
            assert torch.equal(pasted[sample, 0][~inside], healthy_images[sample, 0][~inside])
            assert (pasted[sample, 1] == 0).all()  # nobody has the FLAIR of healthy people
            if name:
                assert grafted.healthy.database[sample] == "people"
                source = load_lesion(store["tumours"], store["tumours"][name.removeprefix("tumours/")])
                voxels = source.images[source.modalities.index("T1")][source.mask]
                assert np.isin(pasted[sample, 0][inside].numpy(), voxels).all()
            names.add(name)
    assert names == {"", "tumours/L1", "tumours/L2"}


@pytest.mark.slow
def test_a_lesion_depends_on_nothing_but_the_seed_and_the_draw(store: Store) -> None:
    whole = drawn(store, stream(store).batches(0, 5))
    resumed = drawn(store, stream(store).batches(3, 5))
    for one, other in zip(whole[3:], resumed, strict=True):
        assert torch.equal(one.pasted.images, other.pasted.images)
        assert one.lesion_cases == other.lesion_cases
    few = Grafts(store, AXIS, ["tumours"], ["people"], seed=3, kept=1)
    assert [few.draw(batch).lesion_cases for batch in stream(store).batches(0, 5)] == [
        one.lesion_cases for one in whole
    ]
    other_seed = Grafts(store, AXIS, ["tumours"], ["people"], seed=4)
    again = [other_seed.draw(batch).lesion_cases for batch in stream(store).batches(0, 5)]
    assert again != [one.lesion_cases for one in whole]


def test_nobody_gets_a_lesion_of_their_own(store: Store) -> None:
    """Patients may be the hosts, too: each then gets the other one's lesion."""
    draw = DrawOptions(patch=(8, 8, 8), lesion_share=0.0, drop="none", seed=0)
    options = StreamOptions(batch_size=4, workers=0, draw=draw)
    patients = PatchStream(store, AXIS, LabelSpace.of(("lesion",)), options, databases="tumours")
    grafts, pairs = Grafts(store, AXIS, ["tumours"], ["tumours"], seed=3), set()
    for batch in patients.batches(0, 8):
        pairs |= set(zip(batch.case, grafts.draw(batch).lesion_cases, strict=True))
    assert pairs == {("L1", "tumours/L2"), ("L2", "tumours/L1")}


@pytest.mark.slow
def test_what_cannot_be_grafted_is_refused_before_the_training(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other has no template"):
        check_graftable(store, ["tumours"], ["other"])
    with pytest.raises(DataError, match="people has no train case with a lesion"):
        Grafts(store, AXIS, ["people"], ["people"])
    with pytest.raises(UsageError, match="other/O1 was not registered"):
        load_healthy(store["other"], store["other"]["O1"])
    attributes = store["people"].attributes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store["people"], "attributes", attributes | {"template": {"name": "x.nii", "sha256": "0" * 64}})
        with pytest.raises(UsageError, match=r"different templates \(tumours: template.nii .*; people: x.nii"):
            check_graftable(store, ["tumours"], ["people"])
    assert check_graftable(store, ["tumours"], ["people"]) == ("T1",)


def test_a_hidden_lesion_makes_no_donor(store: Store) -> None:
    opened = open_store(store.url)
    opened["tumours"].hide("lesion")
    case = opened["tumours"]["L1"]
    assert has_lesion(store["tumours"], store["tumours"]["L1"])
    assert not has_lesion(opened["tumours"], case)
    assert has_lesion(opened["tumours"], case, even_hidden=True)
    assert not has_lesion(opened["people"], opened["people"]["H1"], even_hidden=True)
    assert len(_grafts(TrainOptions(store=store.url, databases="people"), store, AXIS).cases) == 2
    with pytest.raises(DataError, match="has no lesions to paste into people"):
        _grafts(TrainOptions(store=store.url, databases="people"), opened, AXIS)
