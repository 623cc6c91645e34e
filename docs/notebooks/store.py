# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A store, with xarray
#
# What is in a store, by sequence, pathology and age; statistics for each scanner; and a map of where lesions are. The
# scans are phantoms: two synthetic hospitals, written and ingested here in a few seconds.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import multiseg
from multiseg.phantoms.hospitals import write_hospitals

hospitals = write_hospitals(Path("hospitals"), num_cases=6, coarseness=4, names=["cedar", "dogwood"])
write_hospitals(Path("anatomy"), num_cases=1, coarseness=3, names=["hazel"])
options = multiseg.IngestOptions(spacing_mm=(6, 6, 6), template="anatomy/hazel/H001/T1w.nii.gz")
multiseg.ingest(multiseg.find_manifest(hospitals), "brain.zarr", options)
store = multiseg.open_store("brain.zarr")
store

# %% [markdown]
# ## Which cases
#
# `select` takes sequences, a pathology, a split, and values of the table of participants, or a function of them.
# `table` makes a pandas table, a row for each case.

# %%
cases = multiseg.table(multiseg.select(store))
cases.groupby(["pathology", "modalities"]).size()

# %%
with_dwi = multiseg.select(store, modalities=["DWI", "FLAIR"])
older = multiseg.select(
    store, pathology="white matter hyperintensities", participants={"age": lambda years: years > 70}
)
multiseg.table(older)[["database", "case", "age", "sex", "scanner", "split"]]

# %% [markdown]
# ## Statistics for each scanner
#
# `dataset` opens a database as an `xarray.Dataset` with named axes. Nothing is read before it is needed: the arrays
# are dask arrays. Intensities are z-scored inside the brain and 0 outside it; `intensity_mean` and `intensity_std`
# give the raw ones back. `available` says which sequences a case has, and `annotated` whether anybody has looked for
# lesions.

# %%
dogwood = store.dataset("dogwood").chunk(case=1)
flair = dogwood.sel(modality="FLAIR")
lesion = dogwood.label.sel(annotation="wmh") == 1
voxel_ml = np.prod(store.spacing_mm) / 1000

by_case = xr.Dataset(
    {
        "raw_mean": flair.intensity_mean,
        "z_in_lesion": flair.image.where(lesion).mean(["i", "j", "k"]),
        "lesion_ml": lesion.sum(["i", "j", "k"]) * voxel_ml,
    }
).compute()
by_scanner = by_case.assign_coords(scanner=dogwood.scanner.load()).groupby("scanner").mean()
by_scanner[["raw_mean", "z_in_lesion", "lesion_ml"]].to_dataframe().round(2)

# %% [markdown]
# ## Where lesions are
#
# Every case has its own grid. The ingest registered each brain to a template (`--template`, here one healthy
# phantom), so `to_template` takes millimetres of a case to millimetres of the template. The function below gets one
# case as numpy arrays; `apply_ufunc` calls it for all cases by dask, each in memory only while it is counted.

# %%
EDGES_MM = [np.arange(-96, 97, 8.0) for _ in range(3)]


def in_template(lesion, affine, to_template):
    """Whether each voxel of 8 mm of the template has a lesion: [x, y, z], 0 or 1."""
    voxels = np.argwhere(lesion)
    points_mm = (np.c_[voxels, np.ones(len(voxels))] @ (to_template @ affine).T)[:, :3]
    counts, _ = np.histogramdd(points_mm, bins=EDGES_MM)
    return (counts > 0).astype(float)


known = dogwood.to_template.notnull().all(["row", "column"]).compute()
present = xr.apply_ufunc(
    in_template,
    lesion.isel(case=known.values).chunk(i=-1, j=-1, k=-1),
    dogwood.affine.isel(case=known.values).load(),
    dogwood.to_template.isel(case=known.values).load(),
    input_core_dims=[["i", "j", "k"], ["row", "column"], ["row", "column"]],
    output_core_dims=[["x", "y", "z"]],
    exclude_dims={"row", "column"},
    vectorize=True,
    dask="parallelized",
    output_dtypes=[float],
    dask_gufunc_kwargs={"output_sizes": {axis: len(EDGES_MM[0]) - 1 for axis in "xyz"}},
)
frequency = present.mean("case").compute()
print(f"{known.sum().item()} cases in the template; at most {frequency.max().item():.0%} have a lesion in one place")

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for axis, (gone, across, up) in zip(axes, [("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z")], strict=True):
    # The largest value along the line of sight; left is the patient's left.
    picture = axis.imshow(frequency.max(gone).transpose(up, across), origin="lower", extent=(-96, 96, -96, 96), vmin=0)
    axis.set(xlabel=f"{across} mm", ylabel=f"{up} mm")
figure.colorbar(picture, ax=axes, label="share of cases")
figure.suptitle("White matter hyperintensities of phantoms, in the template")
plt.show()
