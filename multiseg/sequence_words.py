"""The words in names of scans: for sequences, for contrast agents, and for everything that is not one of our scans.

Names of files, DICOM series, channels and columns are split by `words_in`. The tables are regular expressions for whole
words separated by one space; `sequence_reading` combines their meanings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

SEQUENCES: Mapping[str, str] = {
    "FLAIR": r"flairw?|t2f|dark ?fluid|da fl|tirm|fluid attenuated(?: inversion recovery)?",
    "SWI": r"swi\w?|swan|venobold|suscept\w*",
    "T2star": r"t2star(?: ?w| weighted)?|ha?emo(?:rrhage|siderin)?",
    "DWI": r"(?:mr)?dwi|diffusion\w*|(?:ep2d|resolve) diff|resolve|trace ?w?|b \d{3,4}",
    "ADC": r"d?adc|apparent(?: diffusion(?: coefficient)?)?",
    "T1IR": r"t1(?: ?w)? ?ir",
    "T1": r"[sd]?t1(?: ?wi?| weighted)?|mp ?rage\w*|bravo|f?spgr|tfl3d|vibe",
    "T2": r"[sd]?t2(?: ?wi?| weighted)?",
    "PD": r"(?:pd|dp)(?: ?wi?| weighted)?|proton(?: ?density)?(?: ?w| weighted)?",
}
T2_STAR_READOUTS = r"gre|ffe|(?:fl|me)[23]d|medic|merge"
"""Gradient echo readouts, with which a T2 is a T2*."""
PREPARED_READOUTS = r"f?spgr|tfe|tfl\w*|mp ?rage\w*|bravo|fl3d"
"""Readouts of T1 that include an inversion, so that IR adds nothing to them."""

AGENT = (
    r"(?:(?:contrast\w*|kontrast\w*|gd(?:dtpa|dota|bt)?|gad\w*|km|ce|mdc|inj\w*|dotarem|magnevist|omniscan|clariscan|"
    r"pro ?hance|multihance)(?: (?:enhanced?|agent|medium|media|dtpa|dota))*)"
)
_BEFORE = (
    r"(?:pre|prae|vor|avant|antes(?: de)?|prima(?: di)?|before|w o|wo|without|no|non|not|ohne|sans|sin|sem|senza|"
    r"zonder|utan|uden|bez)"
)
_AFTER = r"(?:post|after|nach|apres|despues(?: de)?|depois(?: de)?|dopo|pos|with|mit|avec|con|com|met|med|w|plus)"
WITHOUT_CONTRAST = (
    rf"{_BEFORE} ?(?:the )?{AGENT}|minusc|(?:non|un) ?enhanced|non ?con|native?s?|nativ[oa]|plain|blanco|"
    r"pre|prae|wo|w o|without|ohne|sans|sin|sem|senza"
)
WITH_CONTRAST = rf"(?:{_AFTER} ?)?(?:de )?{AGENT}|plusc|enhanced?|post|apres|despues|dopo"
"""Contrast agents in English, German, French, Spanish, Italian, Portuguese, Dutch and Swedish."""
NOT_OF_CONTRAST = (
    r"(?:pre|post|intra|peri|prae) ?(?:op\w*|surg\w*|treat\w*|tx|rt|crt|radio\w*|radiation|chemo\w*|therap\w*|ictal|"
    r"natal|mortem|biops\w*|resect\w*|intervention\w*|stroke|baseline|proc\w*)|(?:in )?native (?:space|resolution)|"
    r"(?:wo|w o|without|no|non|ohne|sans|with|mit|avec|w) ?"
    r"(?:fs|fat ?sat\w*|skull|head|neck|mt|face|bias|norm\w*|corr\w*)"
)
"""Before, after, with and without something other than a contrast agent."""

BY_PRODUCTS: Mapping[str, str] = {
    "a localiser": r"locali[sz]er|loc|scout|survey|(?:3 )?plane|smartbrain|aahead",
    "a calibration": r"calib\w*|asset|shim|b ?[01] ?map|field ?map\w*|prescan|ref scan",
    "a projection, reformat or subtraction": r"m(?:in)?ips?|mnip|mpr|reformat\w*|subtr\w*|projection\w*",
    "a phase image": r"pha?|phases?|unwrapped|imag|imaginary",
}
"""By-products of a scanner."""
OTHER_KINDS: Mapping[str, str] = {
    "an angiogram": r"(?:ce|pc|tof)?mr[av]|tof\w*|angio\w*|veno(?!bold)\w*|tricks|phase contrast|inhance|vessels?",
    "perfusion": r"perf\w*|dsc|dce|p?c?asl|pasl|pwi|[nr]*cb[fv]\w*|mtt|ttp|tmax|ktrans|dyn|dynamic",
    "a functional series": r"fmri|bold|resting|rs ?fmri",
    "spectroscopy": r"spectro\w*|mrsi?|svs|csi|press \d+",
    "diffusion tensor data": (
        r"dti\w*|tensors?|(?:(?:colou?r|col) ?)?fa(?: ?colou?r)?|md|rd|ad|mk|dki|noddi|icvf|kurtosis|fractional|"
        r"anisotropy|diffusivity|tract\w*|dir ?\d+|\d+ ?dirs?|dirs|mddw|bvecs?|bvals?|eigen\w*"
    ),
    "of another contrast": (
        r"stir|dir(?! ?\d)|double (?:ir|inversion)\w*|psir|mp2rage\w*|uni|uniden|inv ?[12]|ciss|fiesta|fgatir|qsm\w*|"
        r"t[12](?:star)?(?: ?w)? (?:maps?|rho)|r[12](?:star|prime)?s?|relax\w*|mt|mtr|mtc|mtsat|mt ?o(?:n|ff)|"
        r"ihmt|cest|"
        r"apt\w*|mwf|myelin|mrf|symri|magic|mre|in ?phase|(?:opp|out)(?: ?of)? ?phase|water(?! ?(?:ex|sup))|fat(?! ?s)"
    ),
    "not MR": r"ct|cta|cbct|pet|suv\w*",
}
"""Measured images that are not one of our sequences."""
LESION_WORDS = r"lesions?|lesionmask|wmhs?|consensus|infarct(?:ion)?|gt|groundtruth|msk|manual|annotation"
TUMOUR_WORDS = r"tumou?rs?|gtv"
TISSUE_WORDS = (
    r"aseg|aparc|wmparc|dlmuse|muse|parcellations?|parc|dseg|synthseg|dkt|dktatlas|freesurfer|neuromorphometrics"
)
ONE_TISSUE_WORDS = r"csf|gm|wm|gray|grey|white"
PREDICTED_WORDS = (
    r"preds?|predict\w*|outputs?|results?|unet|nnunet|ensemble|inference|samseg|lst|lpa|lga|bianca\w*|ples"
)
ANY_LABEL_WORDS = r"seg|segmentation|mask|labels?|roi"
"""Words for labels that do not say what was drawn, and that have other meanings too."""
DERIVED: Mapping[str, str] = {
    "a transform or its field": (
        r"warp\w*|xfm|\w*affine\w*|matrix|transform\w*|deform\w*|displacements?|ddf|dvf|field|(?:log)?jac\w*|"
        r"inverse\w*|invwarp|i?y|u|coeffs?|coefficients?|velocity|flow|composite"
    ),
    "a segmentation, or a part of one": (
        rf"{LESION_WORDS}|{TUMOUR_WORDS}|{TISSUE_WORDS}|{ONE_TISSUE_WORDS}|{ANY_LABEL_WORDS}|tissues?\d*|"
        r"\w+seg|segs|segm\w*|segmentations|fast(?! (?:spin|se|field|gre))|first|malpem|"
        r"fastsurfer\w*|hypermapp\w*|nicms\w*|msmetrix|icobrain|volbrain|assemblynet|"
        rf"{PREDICTED_WORDS}|masks|maske|masque|mascara|maschera|contours?|outline|delineation|rois|voi|"
        r"annotations|mixeltype|hypo\w*|hyperint\w*|[rmw]+[cp][0-6]|tissuemap|labelmap|label+ed|atlas|template|ribbon|"
        r"ventricles?|cortex|hippocamp\w*|thalamus|necro\w*|o?edema|enhancing|core|binary|bin|thresh\w*|rater\w*|"
        r"observer\w*"
    ),
    "a map, not a scan": (
        r"pve\w*|prob\w*|posteriors?|pbmap|softmax|logits?|sigmoid|confidence|heat ?map|saliency|attention|"
        r"bias(?! ?corr)|biasfield|maps?|std|sd|mean|median|variance|var|snr|cnr|difference|"
        r"(?<!ep2d )(?<!resolve )diff|uncertainty|entropy|errors?|residuals?|noise|gradient(?! echo)|edges?|ratio|"
        r"thickness|curv\w*|sulc|surf\w*|mesh|distance|e(?:xp)? ?adc|exponential"
    ),
    "made by software, not by a scanner": (
        r"filled|inpaint\w*|syn|synth\w*|pseudo\w*|fake|generated|simulat\w*|super ?res\w*|qc|overlay|snapshot|"
        r"screenshot|thumb\w*|montage|preview"
    ),
}
"""Images that are computed from scans."""

ACQUISITION = (
    r"[23]d|tse|fse|se|gre|ge|ffe|tfe|tfl\w*|(?:fl|me)[23]d|medic|merge|spc|space|cube|vista|view|iso\w*|sag\w*|cor|"
    r"coron\w*|ax|axi\w*|assiale|tra|trans|trv|transv\w*|obl\w*|fs|fat ?s\w*|sat|sup+\w*|spir|spair|spectral|we|blade|"
    r"propeller|water (?:ex|sup)\w*|multivane|radial|star|haste|ssfse|ir|tir|inversion|recovery|frfse|dual|turbo|"
    r"grappa|caipi\w*|sense|cs|compressed|hr|hires|high|resolution|res|lowres|fast|echo|spin|field|ep2d|epi|3scan|diff|"
    r"weighted|wi?|thin|thick|brain|magnitude|mag|orig|original|raw|denoised?|dn|n3|n4\w*|corr|corrected|bias ?corr\w*|"
    r"norm|normali[sz]ed?|zscored?|hist|matched|resampled?|resliced?|reg|registered|coreg\w*|aligned|rigid|mni\w*|"
    r"reoriented?|ras|lps|lpi|las|cropped|crop|robustfov|acpc|wip|defaced?|anon\w*|stripped|skull ?strip\w*|ss|bet|"
    r"hd ?bet|preproc\w*|processed|preop\w*|postop\w*"
)
"""Readouts, planes and preprocessing steps, which do not change the sequence."""
OF_THE_CASE = (
    r"\d+|(?!b|[cr]\d|t[12](?!\d))[a-z] ?\d+|images?|img|scans?|mri|mrt|irm|rm|mr|head|schaedel|crane|cerveau|gehirn|"
    r"kopf|neuro|whole|mm|slices?|repeat|rep|run|acq\w*|new|final|version|copy|kopie|copie|sub|subj|subject|sujet|pat|"
    r"patient|paciente|paziente|case|ses|session|visit|visite|time|timepoint|tp|id|baseline|follow ?up|fu|months?|"
    r"weeks?|day|year|on|in|of|to|from|the|and|und|et|tesla|t|vol|volume|data|study|series|ser|nifti|nii|anat|dicom|s|"
    r"d|rt"
)
"""Numbers, visits and other words that may be part of a case's name, and do not change the sequence."""

_ALIASES = {
    "t1n": "t1 native", "t1c": "t1 ce", "t1wc": "t1 ce", "t1wks": "t1 ce", "t2s": "t2star", "t1cw": "t1 ce",
    "t2wflair": "flair",
}  # fmt: skip
_ANCHORS = frozenset(("t1", "t1w", "t2", "t2w", "flair", "mprage", "swi", "dwi", "adc", "pdw", "t2star"))
_GLUED = _ANCHORS.union(
    re.findall(
        r"\w+",
        """
        pd pre post gd gad gado gadolinium km ce kontrast contrast nativ native plain norm brain bet reg n4 mask seg map
        maps phase pha mag mip minip stir dir psir tse fse gre ffe tfe spc space cube blade sag cor tra ax axial fs
        fatsat iso rho pve prob lesion warped trace ir 3d 2d star w precontrast postcontrast enhanced qsm
        """,
    )
)
"""Words that are often written together. Short ones are only split next to a sequence."""


def whole(pattern: str) -> re.Pattern[str]:
    """A pattern for whole words in the result of `words_in`."""
    return re.compile(rf"(?<!\S)(?:{pattern})(?!\S)")


_KNOWN = whole("|".join([
    *SEQUENCES.values(), WITHOUT_CONTRAST, WITH_CONTRAST, NOT_OF_CONTRAST, ACQUISITION, OF_THE_CASE,
    *BY_PRODUCTS.values(), *OTHER_KINDS.values(), *DERIVED.values(),
]))  # fmt: skip


def is_word(word: str) -> bool:
    """Whether a single word is in one of the tables."""
    return _KNOWN.fullmatch(word) is not None


def words_in(text: str) -> str:
    """The words of a name in lower case, separated by spaces; words that were written together are split.

    >>> words_in("T1wPre_3D"), words_in("postT1 +C"), words_in("301_t2_tse"), words_in("pat1_FLAIRnorm")
    ('t1w pre 3d', 'post t1 plusc', '301 t2 tse', 'pat 1 flair norm')
    """
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss").replace("ä", "ae"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    for pattern, words in _SIGNS:
        plain = pattern.sub(words, plain)
    return " ".join(word for token in re.findall(r"[A-Za-z0-9]+", plain) for word in _split(token))


_SIGNS = [
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"\bw/o\b", " without "),
        (r"(?<![a-z0-9])([tr]2)(?:\*|[-_ ]?star)(?=w?(?![a-z]))", r" \1star"),
        (r"(?<![a-z0-9])b(\d+)(?![a-z0-9])", r" b \1 "),
        (r"\+ ?(?=(?:c|gd|gad\w*|km|ce)(?![a-z]))", " plus"),
        (r"(?<![a-z0-9])c ?\+|(?<=t1)c\+", " plusc "),
        (r"(?<![a-z0-9])c-(?![a-z0-9])", " minusc "),
    )
]


def _split(token: str) -> list[str]:
    """The words in a token of letters and digits. "c1T1" is SPM's tissue map; "c1_T1" may be of a patient c1."""
    lower = token.lower()
    if lower in _ALIASES:
        return _ALIASES[lower].split()
    glued = _glued(lower)
    if glued and (not _ANCHORS.isdisjoint(glued) or min(map(len, glued)) > 2):
        return glued
    tissue = re.fullmatch(r"[rmwsu]*[cp][0-6](?=[A-Za-z])(.+)", token)
    if tissue and _has_word(tissue[1]):
        return ["tissuemap", *_split(tissue[1])]
    if is_word(lower):
        return [lower]
    for pattern in _SEAMS:
        parts = [part for part in pattern.split(token) if part]
        if len(parts) > 1 and any(_has_word(part) for part in parts):
            return [word for part in parts for word in _split(part)]
    return [lower]


_SEAMS = [
    re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})"),  # T1Enhanced, colFA, FLAIRLong
    re.compile(r"(?i:(?<=flair)(?=[a-z]{2})|(?<=mprage)(?=[a-z]{2})|(?<=[a-z0-9])(?=flair$|mprage$))"),
    re.compile(r"(?i:(?<=^t[12])(?=[a-z]{2})|(?<=^t[12]w)(?=[a-z]{2}))"),
    re.compile(r"(?<=^\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d+$)"),
    re.compile(r"(?<=\d)(?=[A-Za-z])(?<![A-Za-z]\d)(?<![A-Za-z]\d\d)"),
]
"""Where an unknown token is split. The first pattern that results in a known word is used."""


def _has_word(part: str) -> bool:
    return not part.isdecimal() and (is_word(part.lower()) or bool(_glued(part.lower())) or part.lower() in _ALIASES)


def _glued(lower: str) -> list[str]:
    """Split a token into words of `_GLUED`, longest first; empty if that is impossible."""
    if lower in _GLUED:
        return [lower]
    for size in range(min(len(lower) - 1, 12), 1, -1):
        if lower[:size] in _GLUED and (rest := _glued(lower[size:])):
            return [lower[:size], *rest]
    return []
