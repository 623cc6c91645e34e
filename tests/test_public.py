"""The public names, and that importing them costs nothing until they are used."""

import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import multiseg
from multiseg.errors import StoreError, UsageError


def test_every_public_name_is_there() -> None:
    assert sorted(multiseg._HOMES) == sorted(multiseg.__all__)
    for name in multiseg.__all__:
        assert getattr(multiseg, name).__name__ == name
    assert dir(multiseg) == sorted(multiseg.__all__)


def test_unknown_names_are_refused() -> None:
    assert not hasattr(multiseg, "nothing_of_ours")


def test_import_is_light() -> None:
    code = "import sys, multiseg; print(sorted({'torch', 'zarr', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_the_options_of_every_public_function_are_public() -> None:
    """Those of a training are tables within tables, and each of them has to be built by somebody."""
    wanted, found = ["TrainOptions", "IngestOptions", "EvaluateOptions", "StreamOptions"], set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        options = getattr(multiseg, name)
        defaults = options(store="") if name == "TrainOptions" else options()
        wanted += [type(one).__name__ for f in fields(defaults) if is_dataclass(one := getattr(defaults, f.name))]
    assert found <= set(multiseg.__all__)
    assert {"FitOptions", "DrawOptions", "AugmentOptions", "ModelOptions", "StartOptions", "Workers"} <= found


@pytest.mark.slow
def test_a_single_name_is_one_name(store_url: str) -> None:
    """Of the text "FLAIR" the letters were taken, so that nothing was found."""
    store = multiseg.open_store(store_url)
    with_flair = multiseg.select(store, modalities="FLAIR")
    assert with_flair == multiseg.select(store, modalities=["FLAIR"]) != ()
    assert {case.database for case in multiseg.select(store, "cedar")} == {"cedar"}
    options = multiseg.TrainOptions(store=Path(store_url), databases="cedar", labels="lesion")
    assert (options.store, options.databases, options.labels) == (store_url, ("cedar",), ("lesion",))
    assert multiseg.EvaluateOptions(databases="cedar").databases == ("cedar",)
    assert multiseg.IngestOptions(redo="db/case").redo == ("db/case",)
    assert tuple(multiseg.ModalityAxis("FLAIR")) == ("FLAIR",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"modalities": ["FLIAR"]},
            r"no database has the sequence 'FLIAR'; there are PD, FLAIR, T1, T2, T1c, DWI, ADC",
        ),
        ({"pathology": "Glioma"}, r"no database has the pathology 'Glioma'; there are multiple sclerosis, glioma"),
        ({"databases": "elm"}, r"has no database 'elm'"),
    ],
)
def test_names_that_the_store_does_not_have_are_refused(store_url: str, asked: dict[str, str], said: str) -> None:
    with pytest.raises(StoreError, match=said):
        multiseg.select(multiseg.open_store(store_url), **asked)


@pytest.fixture(scope="module")
def run(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one step."""
    out = str(tmp_path_factory.mktemp("run") / "run")
    draw = multiseg.DrawOptions(patch=(16, 16, 16))
    multiseg.train(
        multiseg.TrainOptions(
            store=store_url,
            databases="cedar",
            device="cpu",
            model=multiseg.ModelOptions(widths=(4, 8)),
            stream=multiseg.StreamOptions(draw, batch_size=2, workers=0),
            fit=multiseg.FitOptions(num_steps=1, validation_cases=1),
        ),
        out,
    )
    return out


@pytest.mark.slow
def test_paths_may_be_texts(run: str, store_url: str, hospitals: Path, tmp_path: Path) -> None:
    flair = multiseg.find_manifest(str(hospitals / "manifest.toml"))[2].cases[0].images["FLAIR"]
    done = multiseg.predict(run, {"FLAIR": str(flair)}, str(tmp_path / "answer.nii.gz"))
    assert done.path == tmp_path / "answer.nii.gz"
    assert done.path.is_file()
    options = multiseg.EvaluateOptions(split="train", databases="cedar", subsets="full")
    result = multiseg.evaluate(run, store_url, options, folder=str(tmp_path / "evaluation"))
    result.save(str(tmp_path / "evaluation"))
    assert (tmp_path / "evaluation" / "summary.csv").is_file()
    found = multiseg.find_manifest(str(hospitals / "manifest.toml"))
    assert len(found) == 4
    alone = replace(found[2], cases=found[2].cases[:1])
    spacing = multiseg.IngestOptions(spacing_mm=(5.0, 5.0, 5.0))
    assert multiseg.ingest([alone], tmp_path / "one.zarr", spacing)[0].written == ("C001",)
    assert multiseg.open_store(tmp_path / "one.zarr")["cedar"]["C001"].name == "C001"


def test_a_device_may_be_left_to_multiseg(run: str) -> None:
    model = multiseg.load_model(run, device="auto")
    assert next(model.parameters()).device.type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="the device is 'gpu': give one of auto, cpu, cuda, cuda:N"):
        multiseg.load_model(run, device="gpu")


@pytest.mark.slow
def test_what_is_shown_of_an_object_fits_a_screen(run: str, store_url: str, hospitals: Path) -> None:
    store = multiseg.open_store(store_url)
    options = multiseg.EvaluateOptions(split="train", subsets="full")
    result = multiseg.evaluate(run, store_url, replace(options, databases=("cedar",)))
    stream = multiseg.PatchStream(store, multiseg.ModalityAxis("FLAIR"), multiseg.LabelSpace())
    objects = [
        stream,
        store,
        store["cedar"],
        store.cases[0],
        result,
        next(iter(stream.batches(0, 1))),
        multiseg.find_manifest(hospitals / "manifest.toml"),
    ]
    assert [len(repr(one)) for one in objects if len(repr(one)) > 1500] == []
    assert repr(store["cedar"]) == (
        "<Database cedar: ischaemic stroke, 4 cases (1 test, 2 train, 1 val), FLAIR DWI ADC; lesion: lesion>"
    )
    size = " x ".join(map(str, store["alder"].cases[0].extent))
    assert repr(store["alder"].cases[0]).startswith(f"<Case alder/A001: PD FLAIR T1 T2, {size} voxels, ")
    assert repr(store["cedar"]) in repr(store)
    assert "2 cases, 0 not evaluated" in repr(result)
    assert not np.isnan(result.summary.dice).all()
