"""The challenges whose folder and file names say everything, with one record each.

To add one, write its record here and a test of it; `challenge_layout.Challenge` explains the fields.
"""

from __future__ import annotations

from multiseg.store.sources.annotations import DEFAULT_ANNOTATION
from multiseg.store.sources.brats_codes import UNTIL_2021
from multiseg.store.sources.challenge_layout import Challenge

MS = "multiple sclerosis"
WHITE_MATTER = "white matter hyperintensities"
MRBRAINS_CODES = (
    "1=cortical grey matter,2=basal ganglia,3=white matter,4=lesion:WM lesion,5=CSF,6=ventricles,7=cerebellum,"
    "8=brainstem"
)

CHALLENGES = (
    # https://www.synapse.org/brats2024 - for radiotherapy of meningioma: one contrast-enhanced T1 per case, in its own
    # space and with skull, and the gross tumour volume.
    Challenge(
        name="brats_men_rt",
        title="BraTS 2024 MEN-RT",
        pathology="meningioma",
        files=(r"(?:.*/)?(?P<case>(?P<subject>BraTS-MEN-RT-\d+)-(?P<session>\d+))/(?P=case)[-_]{what}",),
        images={"t1c": "T1c"},
        labels={"gtv": "gtv"},
        test_part="cases without label",
        test_names="(?i)validation|testing",
    ),
    # https://doi.org/10.7937/TCIA.709X-DN49 - manual labels for some cases, automatic ones for most. UPENN-GBM-00001_21
    # is the visit 21 of UPENN-GBM-00001. Folders called "old" have superseded files. Many patients are in BraTS 2021.
    Challenge(
        name="upenn",
        title="UPENN-GBM",
        pathology="glioma",
        files=(
            r"(?!(?:.*/)?old/)(?:.*/)?images_structural/"
            r"(?P<case>(?P<subject>UPENN-GBM-\d+)_(?P<session>\d+))/(?P=case)_{what}",
            r"(?!(?:.*/)?old/)(?:.*/)?(?:images|automated)_segm/"
            r"(?P<case>(?P<subject>UPENN-GBM-\d+)_(?P<session>\d+))_{what}",
        ),
        images={"T1": "T1", "T1GD": "T1GD", "T2": "T2", "FLAIR": "FLAIR"},
        labels={"segm": "tumour", "automated_approx_segm": "automated"},
        codes=UNTIL_2021,
        needs_all_labels=False,
        signs=("images_structural",),
        evidence="{cases} folders such as images_structural/{case}",
    ),
    # https://doi.org/10.7937/tcia.bdgf-8v37 - the folder of a later scan has FU and days in its name. "_T1_bias" would
    # be a second T1. Perfusion and diffusion tensors are not used. Many patients are in BraTS 2021.
    Challenge(
        name="ucsf_pdgm",
        title="UCSF-PDGM",
        pathology="glioma",
        files=(r"(?:.*/)?(?P<case>(?P<subject>UCSF-PDGM-\d+)(?:_(?P<session>FU\w+))?)_nifti/(?P=case)_{what}",),
        images={name: name for name in ("T1", "T1c", "T2", "FLAIR", "SWI", "DWI", "ADC")},
        labels={"tumor_segmentation": "tumour"},
        brain_mask=("brain_segmentation",),
        codes=UNTIL_2021,
        evidence="{cases} folders such as {case}_nifti",
    ),
    # https://doi.org/10.5281/zenodo.7153326 - this release has folders `anat` and `dwi`; an older one has all files of
    # a session in one folder. The lesion is on the grid of DWI and ADC. An empty mask means that no lesion was seen.
    # The folders could also be plain BIDS, so the subjects' names decide.
    Challenge(
        name="isles2022",
        title="ISLES 2022",
        pathology="ischaemic stroke",
        files=(
            r"(?!.*derivatives.*/)(?:.*/)?(?P<subject>sub-[^/_]+)/(?P<session>ses-[^/_]+)/(?:(?:anat|dwi)/)?"
            r"(?P=subject)_(?P=session)_{what}",
            r"(?:.*/)?(?P<subject>sub-[^/_]+)/(?P<session>ses-[^/_]+)/(?:\w+/)?(?P=subject)_(?P=session)_(?P<what>msk)",
        ),
        case="{subject}_{session}",
        images={"FLAIR": "FLAIR", "flair": "FLAIR", "adc": "ADC", "dwi": "DWI"},
        labels={"msk": DEFAULT_ANNOTATION},
        signs=(r"(?:sub-strokecase.*|/ses-[^/]+/[^/]+)_(?:FLAIR|flair|adc|dwi)\.",),
        evidence="{subjects} folders such as {subject}",
        licence="CC BY-SA 4.0",
        citation="Hernandez Petzsche et al. 2022, Scientific Data 9:762",
    ),
    # https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html - in template space, and since 2026 also raw. The
    # R-number of a subject is its site.
    Challenge(
        name="atlas2",
        title="ATLAS v2",
        pathology="stroke",
        files=(
            r"(?:.*/)?(?P<subject>sub-r(?P<site>\d{3})s\d{3})/(?P<session>ses-\w+)/anat/(?P=subject)_(?P=session)_"
            r"(?:space-(?P<space>[^_/]+)_)?(?:desc-brain_|label-\w+_desc-)?{what}",
        ),
        case="{subject}_{session}",
        images={"T1w": "T1"},
        labels={"T1lesion_mask": DEFAULT_ANNOTATION},
        site="R{site}",
        test_part="unlabelled",
        evidence="{subjects} folders such as {subject}",
        citation="Liew et al. 2022, Scientific Data 9:320",
    ),
    # https://shanoir.irisa.fr - MSSEG-Training and MSSEG-Testing both number their patients from 1. An earlier release
    # has one flat folder per patient, such as 01016SACH, whose first two digits are the centre.
    Challenge(
        name="msseg2016",
        title="MSSEG 2016",
        pathology=MS,
        files=(
            r"(?i)(?:.*/)?(?P<site>(?P<centre>Center_\w+))/(?P<patient>Patient_\w+)/"
            r"(?:(?P<stage>Preprocessed_Data|Raw_Data)|Masks)/"
            r"(?:(?:3D)?{what}(?:_preprocessed)?|ManualSegmentation_(?P<rater>\d+))",
            r"(?i)(?:.*/)?(?P<case>(?P<site>\d\d)\d{3}[A-Z]{4})/"
            r"(?:(?:3D)?{what}(?:_preprocessed)?|ManualSegmentation_(?P<rater>\d+))",
        ),
        case="{test}_{centre}_{patient}",
        images={"flair": "FLAIR", "t1": "T1", "gado": "T1c", "t1gado": "T1c", "t2": "T2", "dp": "PD"},
        labels={"consensus": DEFAULT_ANNOTATION},
        brain_mask=("brainmask", "brain_mask"),
        needs_all_labels=False,
        stages={"Preprocessed_Data": "denoised, without skull, bias corrected, on the FLAIR's grid", "Raw_Data": ""},
        test_part="labelled",
        test_names="(?i)testing",
        signs=("(?i)/(?:Consensus|ManualSegmentation_|Brain_?Mask)",),
        evidence="{cases} patients such as {case}",
    ),
    # https://doi.org/10.1038/s41597-025-05250-y - in train/P1/T1/P1_T1_FLAIR.nii.gz the first T1 is the time point, the
    # last word the sequence. Test patients have one visit, without a folder for it. Cases are not called "P1_T1", which
    # would be read as a sequence again.
    Challenge(
        name="mslesseg",
        title="MSLesSeg",
        pathology=MS,
        files=(
            r"(?:.*/)?(?P<subject>P\d+)/(?:(?P<session>T(?P<visit>\d+))/)?(?P=subject)(?(session)_(?P=session))_{what}",
        ),
        case="{subject}_time{visit}",
        images={name: name for name in ("FLAIR", "T1", "T2")},
        labels={"MASK": DEFAULT_ANNOTATION},
        test_part="labelled",
        evidence="{subjects} patients such as {subject} with {cases} visits",
    ),
    # https://smart-stats-tools.org/lesion-challenge - longitudinal: training01_02 is the visit 02 of training01. Two
    # raters and no consensus; the test set's masks are not public.
    Challenge(
        name="isbi2015",
        title="ISBI 2015",
        pathology=MS,
        files=(
            r"(?:.*/)?(?P<subject>(?:training|test)\d+)/(?:(?P<stage>orig|preprocessed)|masks)/"
            r"(?P=subject)_(?P<session>\d+)_{what}(?:_pp)?",
        ),
        case="{subject}_{session}",
        images={"flair": "FLAIR", "mprage": "T1", "t2": "T2", "pd": "PD"},
        labels={"mask1": "rater1", "mask2": "rater2"},
        stages={"preprocessed": "without skull, on the masks' grid", "orig": ""},
        test_part="unlabelled",
        evidence="{subjects} people such as {subject} with {cases} visits",
    ),
    # https://www.nitrc.org/projects/msseg - MSseg08, from Boston's Children's Hospital and Chapel Hill. Some UNC cases
    # have one label from each of two raters (_lesion_byCHB).
    Challenge(
        name="msseg2008",
        title="MSseg08",
        pathology=MS,
        files=(
            r"(?:.*/)?(?P<case>(?P<site>CHB|UNC)_(?:train|test\d*)_Case\d+)/(?P=case)_{what}"
            r"(?:(?<=lesion)_by(?P<rater>\w+))?",
        ),
        images={name: name for name in ("FLAIR", "T1", "T2")},
        labels={"lesion": DEFAULT_ANNOTATION},
        needs_all_labels=False,
        test_part="unlabelled",
    ),
    # https://mrbrains13.isi.uu.nl - manually drawn tissues of older people, including white matter lesions. T1_1mm is
    # the same T1 with thinner slices; LabelsForTesting are three tissues of the same drawing.
    Challenge(
        name="mrbrains13",
        title="MRBrainS 2013",
        pathology=WHITE_MATTER,
        files=(r"(?:.*/)?(?P<case>[^/]+)/(?:{what}|LabelsForTesting)",),
        images={"T1": "T1", "T1_IR": "T1IR", "T2_FLAIR": "FLAIR"},
        labels={"LabelsForTraining": "tissue"},
        codes=MRBRAINS_CODES,
        test_part="cases without label",
        test_names="TestData",
        signs=("/LabelsFor",),
        evidence="{cases} folders such as {case} with LabelsForTraining or LabelsForTesting",
    ),
    # https://mrbrains18.isi.uu.nl - 9 is infarction and 10 other pathology. They are neither tissue nor the white
    # matter lesions that were looked for, so they are ignored.
    Challenge(
        name="mrbrains18",
        title="MRBrainS 2018",
        pathology=WHITE_MATTER,
        files=(r"(?:.*/)?(?P<case>[^/]+)/(?P<stage>pre|orig)/{what}", r"(?:.*/)?(?P<case>[^/]+)/(?P<what>segm)"),
        images={"reg_T1": "T1", "reg_IR": "T1IR", "FLAIR": "FLAIR"},
        labels={"segm": "tissue"},
        codes=f"{MRBRAINS_CODES},9=ignore,10=ignore",
        stages={"pre": "bias corrected", "orig": ""},
        signs=("/segm", "/(?:pre|orig)/"),
        evidence="{cases} folders such as {case} with segm and reg_T1",
    ),
    # https://github.com/muschellij2/open_ms_data - MSLUB of the Ljubljana laboratory. It has the same patients at
    # three stages; in the original release names begin with patient01_. The longitudinal part marks changes between
    # two visits, not all lesions, so it is not used.
    Challenge(
        name="open_ms",
        title="MSLUB",
        pathology=MS,
        files=(
            r"(?!(?:.*/)?longitudinal/)(?:(?:.*/)?(?P<stage>coregistered_resampled|coregistered|raw)/)?(?:.*/)?"
            r"(?P<case>patient\d+)/(?:(?P=case)_)?{what}",
        ),
        images={"FLAIR": "FLAIR", "T1W": "T1", "T1WKS": "T1c", "T2W": "T2"},
        labels={"consensus_gt": DEFAULT_ANNOTATION},
        brain_mask=("brainmask",),
        stages={"coregistered_resampled": "", "coregistered": "", "raw": ""},
        signs=("consensus_gt",),
        evidence="{cases} folders such as {case} with consensus_gt",
        licence="CC-BY-4.0",
        citation="Lesjak et al. 2018, Neuroinformatics, doi:10.1007/s12021-017-9348-7",
    ),
    # Two visits of a patient, with only the lesions that are new at the second one. Older lesions are not marked, so a
    # model would learn that they are not lesions.
    Challenge(
        name="msseg2",
        title="MSSEG-2 (new lesions only)",
        pathology=MS,
        files=("(?:.*/)?(?P<case>[^/]+)/flair_time0[12]_on_middle_space",),
        images={},
        evidence="{cases} folders with flair_time01_on_middle_space, such as {case}",
        refusal="MSSEG-2, whose labels are only the new lesions of the second visit: all older lesions are background, "
        "so the masks are incomplete. If you have masks of all lesions, give their files: "
        '--pattern "{case}/{modality}.nii.gz" --label "{case}/lesions.nii.gz" '
        "--modality flair_time02_on_middle_space=FLAIR --modality flair_time01_on_middle_space=skip.",
    ),
)
