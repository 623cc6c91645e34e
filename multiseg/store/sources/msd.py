"""The Medical Segmentation Decathlon: one 4-D file per case, its volumes in the order of dataset.json.

http://medicaldecathlon.com (Antonelli 2022, arXiv:2106.05735). In Task01_BrainTumour the label 1 is oedema, but
necrosis in BraTS, so the meaning of codes comes from dataset.json alone.
"""

from __future__ import annotations

from multiseg.errors import SourceError
from multiseg.store.sources import dataset_json
from multiseg.store.sources.source_channels import check_sizes, stack_roles
from multiseg.store.sources.source_folder import SUFFIX, Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions


def _is_decathlon(home: Folder) -> bool:
    data = dataset_json.peek(home)
    has_images = bool(home.matches(rf"images(?:Tr|Ts)/[^/]+{SUFFIX}"))
    return has_images and "channel_names" not in data and not dataset_json.has_channel_files(home)


def _recognise(folder: Folder) -> str:
    homes = [home for home in dataset_json.homes(folder) if _is_decathlon(home)]
    return f"{homes[0].name} has a dataset.json, and one file per case in imagesTr" if homes else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    home = dataset_json.only_home(folder)
    data = dataset_json.read_json(home.path(dataset_json.NAME))
    names = dataset_json.channel_names(home, data, options)
    if set(names) != set(range(len(names))):
        message = f"{home.path(dataset_json.NAME)} numbers its channels {sorted(names)}, not from 0. Correct it."
        raise SourceError(message, code="BAD_JSON", file=dataset_json.NAME)
    annotation, schemas, findings = dataset_json.annotation(data, options)
    roles: list[Role] = []
    for part, keys in (("Tr", ("training", "numTraining")), ("Ts", ("test", "numTest"))):
        images = home.matches(rf"images{part}/(?P<case>[^/]+?){SUFFIX}")
        files = [(match["case"], home.path(match[0])) for match in images]
        cases = {case for case, _ in files}
        fields = {"split": "test"} if part == "Ts" else {}
        roles += [role for case, path in files for role in stack_roles(case, path, names, fields)]
        roles += [
            Role(match["case"], "label", annotation, home.path(match[0]), fields)
            for match in home.matches(rf"labels{part}/(?P<case>[^/]+?){SUFFIX}")
        ]
        findings += check_sizes(files, len(names))
        findings += dataset_json.broken_promises(data, keys, cases, SUFFIX)
    return FoundFiles(
        folder=home,
        roles=roles,
        schemas=schemas,
        may_lack_labels={role.case for role in roles if role.fields},
        unused=home.unused(role.file for role in roles),
        findings=tuple(findings),
        licence=dataset_json.text_of(data, "licence", "license"),
        citation=dataset_json.text_of(data, "reference"),
        source=dataset_json.text_of(data, "description", "name"),
    )


LAYOUT = Layout("msd", "Medical Segmentation Decathlon", _recognise, _find)
