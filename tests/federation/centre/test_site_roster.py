"""Who takes part, and the joint model that follows."""

from dataclasses import replace

import pytest
from fake_link import FakeSite, options

from multiseg.errors import FederationError
from multiseg.federation.centre import scope
from multiseg.federation.centre.scope import info_at_server, info_at_site, learnt_with
from multiseg.federation.centre.site_info import SiteInfo, groups_at, has_validation, num_cases, site_info
from multiseg.federation.centre.site_roster import Roster, enrolled, joint, personal_parts, trains, warnings
from multiseg.federation.messages import DESCRIBE, Answer, SiteTask
from multiseg.federation.plan import FederationOptions, LocalOptions, PrivacyOptions
from multiseg.labels import LabelSpace
from multiseg.models.network_parts import parts
from multiseg.training.run_folder import ModelOptions

ASH = FakeSite("ash", ("T1", "FLAIR"))
ELM = FakeSite("elm", ("FLAIR", "PD"))
TUMOUR = (("oedema", "lesion"), ("core", "lesion"))


def told(*sites: FakeSite) -> dict[str, SiteInfo]:
    return {site.name: site_info(site.answer(SiteTask(DESCRIBE, "fake"))) for site in sites}


def test_the_axis_is_the_union_in_canonical_order() -> None:
    info = joint(told(ASH, ELM), options("ash", "elm"))
    assert tuple(info.axis) == ("PD", "FLAIR", "T1")
    assert dict(info.trained_on) == {"PD": ("elm/elm",), "FLAIR": ("ash/ash", "elm/elm"), "T1": ("ash/ash",)}
    assert info.databases["ash/ash"] == {"pathology": "stroke", "num_cases": 10, "recipe": {}, "licence": ""}
    assert info.spacing_mm == (1.0, 1.0, 1.0)


def test_on_resume_it_only_grows_at_its_end() -> None:
    before = joint(told(ASH), options("ash"))
    info = joint(told(ELM), options("elm"), before)
    assert tuple(info.axis) == ("FLAIR", "T1", "PD")  # T1 stays, though nobody has it any more
    assert dict(info.trained_on) == {"FLAIR": ("ash/ash", "elm/elm"), "T1": ("ash/ash",), "PD": ("elm/elm",)}


def test_the_sequences_of_a_site_held_out_are_no_channels() -> None:
    info = joint(told(ASH, ELM), replace(options("ash"), held_out=("elm",)))
    assert tuple(info.axis) == ("FLAIR", "T1")
    assert set(info.databases) == {"ash/ash"}


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (
            replace(ELM, spacing_mm=(2.0, 2.0, 2.0)),
            r"its voxels are \[2.0, 2.0, 2.0\] mm and the run's \[1.0, 1.0, 1.0\]",
        ),
        (
            replace(ELM, labels=(("CSF", "tissue"),)),
            "it has no annotation of lesion, or in fewer cases than its `least`; its labels are CSF",
        ),
        (replace(ELM, num_cases=0), "it has no training cases, or fewer than its `least`: list it in held_out"),
        (replace(ELM, modalities=()), "its training cases have no sequences"),
        (replace(ELM, can_train=False), "it does not let others train on its data"),
        (replace(ELM, versions={"multiseg": "0.0.1", "protocol": 1}), "its multiseg is 0.0.1 and the server's"),
        (replace(ELM, versions={"multiseg": "0.0.1", "protocol": 99}), "its protocol is 99 and the server's 1"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_the_reason(site: FakeSite, reason: str) -> None:
    with pytest.raises(FederationError, match=f"elm: .*{reason}"):
        joint(told(ASH, FakeSite("oak"), site), options("ash", "elm", "oak"))


def test_all_reasons_of_all_sites_are_said_at_once() -> None:
    sites = (ASH, FakeSite("oak"), replace(ELM, num_cases=0, spacing_mm=(2.0, 2.0, 2.0)), FakeSite("yew", labels=()))
    with pytest.raises(FederationError) as caught:
        joint(told(*sites), options("ash", "oak", "elm", "yew"))
    for part in (
        "elm: its voxels",
        "no training cases",
        "yew: it has no annotation of lesion, or in fewer cases than its `least`; its labels are none",
    ):
        assert part in str(caught.value)
    assert "ash:" not in str(caught.value)


def test_a_site_held_out_needs_a_sequence_in_common() -> None:
    said = replace(options("ash"), held_out=("far",))
    with pytest.raises(FederationError, match="far: none of its sequences is among FLAIR, T1, which the others have"):
        joint(told(ASH, FakeSite("far", ("DWI",))), said)
    joint(told(ASH, FakeSite("far", ("DWI", "T1"), num_cases=0, can_train=False)), said)


def test_more_sequences_than_the_network_has_channels() -> None:
    said = replace(options("ash", "elm"), model=ModelOptions(widths=(2, 8)))
    with pytest.raises(FederationError, match=r"at most 2 sequences.*3 \(PD, FLAIR, T1\). ash: T1, FLAIR; elm: FLAIR"):
        joint(told(ASH, ELM), said)


def test_a_description_that_is_none_is_named() -> None:
    with pytest.raises(FederationError, match="'databases' is missing"):
        site_info(Answer(DESCRIBE, "ash", 0, {"site": "ash"}))
    with pytest.raises(FederationError, match="site elm describes itself as ash"):
        site_info(Answer(DESCRIBE, "elm", 0, ASH.about()))


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ({"num_cases": {"train": float("inf"), "val": 0, "test": 0}}, "num_cases/train is inf"),
        ({"num_cases": {"train": float("nan"), "val": 0, "test": 0}}, "num_cases/train is nan, not an integer"),
        ({"num_cases": {"train": 5, "val": -5, "test": 0}}, "num_cases/val is -5"),
        ({"num_cases": {"train": [5], "val": 0, "test": 0}}, r"num_cases/train is \[5\], not an integer"),
        ({"modalities": ["T1", ""]}, "a sequence is empty"),
        ({"modalities": ["T1", ["T2"]]}, "modalities is not a list of texts"),
        ({"modalities": "T1"}, "modalities is not a list of texts"),
        ({"labels": [{"name": "lesion", "kind": ["lesion"]}]}, "a label's kind is list, not a text"),
    ],
)
def test_an_invalid_description_of_a_database_is_refused(database: dict[str, object], reason: str) -> None:
    about = ASH.about()
    about["databases"] = {"ash": {**about["databases"]["ash"], **database}}  # type: ignore[index]
    with pytest.raises(FederationError, match=reason):
        site_info(Answer(DESCRIBE, "ash", 0, about))


@pytest.mark.parametrize("spacing", [[0.0, 1.0, 1.0], [float("nan"), 1.0, 1.0], [1.0, float("inf"), 1.0], [1.0]])
def test_voxels_of_no_size_are_refused(spacing: list[float]) -> None:
    with pytest.raises(FederationError, match="is invalid"):
        site_info(Answer(DESCRIBE, "ash", 0, {**ASH.about(), "spacing_mm": spacing}))


def test_what_a_site_trains() -> None:
    said = replace(options("ash", "elm"), labels=("oedema", "core", "tissue:CSF"))
    roster = enrolled(told(replace(ASH, labels=TUMOUR), replace(ELM, labels=(("CSF", "tissue"),))), said)
    space = roster.info.space
    assert groups_at(roster.sites["ash"], space) >= {"label:oedema", "label:core", "kind:lesion"}
    assert "label:CSF" not in groups_at(roster.sites["ash"], space)
    assert num_cases(roster.sites["ash"], space, "label:CSF") == 0
    assert num_cases(roster.sites["elm"], space, "PD") == 10
    groups = {part.group for part in trains("elm", roster, said)}
    assert groups == {"", "PD", "FLAIR", "label:CSF"}


def branched(*sites: FakeSite) -> Roster:
    return enrolled(told(*sites), branched_options(*(site.name for site in sites)))


def branched_options(*names: str) -> FederationOptions:
    said = replace(options(*names), labels=("tissue:CSF", "lesion"))
    return replace(said, model=ModelOptions(builder="two_unets", widths=(4, 8)))


YEW = FakeSite("yew", ("T1", "T2"), labels=(("CSF", "tissue"),))


def test_a_site_trains_the_branch_of_what_it_annotates() -> None:
    roster, said = branched(ASH, YEW), branched_options("ash", "yew")
    assert roster.info.numbers["anatomy_channels"] == [1]
    assert roster.info.numbers["lesion_logits"] == [2]
    of_tissues, of_lesions = (
        {part.tensor.split(".")[0] for part in trains(name, roster, said)} for name in ("yew", "ash")
    )
    assert (of_tissues, of_lesions) == ({"anatomy"}, {"lesion"})
    assert num_cases(roster.sites["ash"], roster.info.space, "kind:lesion/FLAIR") == 10
    assert num_cases(roster.sites["yew"], roster.info.space, "kind:lesion/T2") == 0
    assert {text.partition(":")[0] for text in warnings(roster, said)} == {
        "the branch of tissues",
        "T1 in the branch of tissues",
        "label CSF",
        "the branch of lesions",
        "FLAIR in the branch of lesions",
        "T1 in the branch of lesions",
        "label lesion",
    }


def test_a_resumed_run_keeps_the_channels_of_its_branches() -> None:
    before = branched(ASH, YEW).info
    newer = joint(told(ASH, replace(YEW, modalities=("T1", "SWI"))), branched_options("ash", "yew"), before)
    assert tuple(newer.axis) == ("FLAIR", "T1", "T2", "SWI")
    assert newer.numbers == before.numbers


def test_a_branch_needs_its_sequence() -> None:
    with pytest.raises(FederationError, match=r"yew is annotated for tissues, but has no T1, .* hide them in its site"):
        branched(ASH, replace(YEW, modalities=("T2",)))
    only_lesions = replace(branched_options("ash", "elm"), labels=("lesion",))
    with pytest.raises(FederationError, match="there is no tissue among the labels lesion"):
        enrolled(told(ASH, ELM), only_lesions)


def test_a_label_that_no_site_has_is_refused() -> None:
    said = replace(options("ash", "elm"), labels=("lesion", "tissue:CFS"))
    with pytest.raises(FederationError, match="no case in the training data of the sites is annotated for tissue:CFS"):
        enrolled(told(ASH, replace(ELM, labels=(("CSF", "tissue"), ("lesion", "lesion")))), said)


def test_lesions_that_a_run_leaves_out_are_refused_until_it_says_what_they_are() -> None:
    infos = told(replace(ASH, labels=TUMOUR), replace(ELM, labels=(("oedema", "lesion"),)))
    infos["ash"].databases["ash"]["unlisted"] = ["core"]
    said = replace(options("ash", "elm"), labels=("oedema",))
    with pytest.raises(FederationError, match=r"leave out lesion structures that the data have \(ash/ash: core\)"):
        enrolled(infos, said)
    assert enrolled(infos, replace(said, rest="ignore")).info.space.rest == "ignore"


def test_under_masks_what_few_have_stays_at_home() -> None:
    said = replace(options("ash", "elm", "oak"), privacy=PrivacyOptions(masked=True))
    infos = {name: replace(info, public_key="00") for name, info in told(ASH, ELM, FakeSite("oak")).items()}
    roster = enrolled(infos, said)
    own = personal_parts(roster, said)
    assert own == ("encoder.0.first.conv.weight[PD]", "encoder.0.first.conv.weight[T1]")
    assert [text.split(":")[0] for text in warnings(roster, said)] == ["PD", "T1"]
    assert personal_parts(roster, options("ash", "elm", "oak")) == ()
    learnt = learnt_with({}, roster, said.sites)
    known = info_at_server(roster.info, roster, said, learnt).trained_on
    assert known == {"PD": (), "FLAIR": ("ash/ash", "elm/elm", "oak/oak"), "T1": ()}
    served = info_at_server(roster.info, roster, said, learnt)
    known = info_at_site(served, roster, said, "ash", learnt).trained_on
    assert known == {"PD": (), "FLAIR": ("ash/ash", "elm/elm", "oak/oak"), "T1": ("ash/ash",)}
    assert info_at_site(served, roster, said, "ash", {"T1": ("elm/elm",)}).trained_on["T1"] == ()


def test_a_model_has_learnt_only_from_sites_whose_updates_it_holds() -> None:
    said = options("ash", "elm")
    roster = enrolled(told(ASH, ELM), said)
    info = info_at_server(roster.info, roster, said, learnt_with({}, roster, ["ash"]))
    assert info.trained_on == {"PD": (), "FLAIR": ("ash/ash",), "T1": ("ash/ash",)}
    assert set(info.databases) == {"ash/ash"}


def test_under_masks_the_servers_model_says_what_it_cannot_read() -> None:
    said = replace(options("ash", "elm", "oak"), privacy=PrivacyOptions(masked=True))
    infos = {name: replace(info, public_key="00") for name, info in told(ASH, ELM, FakeSite("oak")).items()}
    roster = enrolled(infos, said)
    assert scope.warnings(roster, said) == ["do not give the server's models PD, T1: sites keep those weights."]
    with pytest.raises(FederationError, match="ash: it has no key for masks"):
        enrolled(told(ASH, ELM, FakeSite("oak")), said)


@pytest.mark.parametrize(
    ("builder", "pattern", "expected"),
    [
        ("multi_unet", "*norm*", set()),
        ("maf_unet", "*norm*", set()),  # norms of each sequence's encoder, which begin as what does nothing
        ("maf_unet", "encoders.0.*", {"PD"}),
        ("multi_unet", "decoder.*weight", {"PD", "FLAIR", "T1"}),  # nothing is read without it
    ],
)
def test_which_sequences_the_server_cannot_read(builder: str, pattern: str, expected: set[str]) -> None:
    said = options(
        "ash", "elm", model=ModelOptions(builder, (4, 8), norm="batch"), local=LocalOptions(personal=(pattern,))
    )
    roster = enrolled(told(ASH, ELM), said)
    scope.check_personal(parts(roster.info), said)
    assert scope.unreadable_sequences(roster, said) == expected


def test_a_sequence_of_one_site_is_said() -> None:
    roster = enrolled(told(ASH, ELM), options("ash", "elm"))
    said = warnings(roster, options("ash", "elm"))
    assert [text.split(",")[0] for text in said] == ["PD: only elm has it", "T1: only ash has it"]


def test_a_roster_comes_back_from_json() -> None:
    roster = enrolled(told(ASH, ELM), replace(options("ash"), held_out=("elm",)))
    again = Roster.from_json(roster.to_json())
    assert again.to_json() == roster.to_json()
    assert list(again.held_out) == ["elm"]


def test_a_site_that_says_it_has_nearly_all_cases_is_named() -> None:
    sites = (FakeSite("ash"), FakeSite("elm", num_cases=1_000_000), FakeSite("oak"))
    said = options("ash", "elm", "oak")
    roster = enrolled(told(*sites), said)
    (text,) = [text for text in warnings(roster, said) if "dominates every mean" in text]
    assert text.startswith("elm reports 1,000,000 of the 1,000,020 training cases")
    fair = enrolled(told(FakeSite("ash"), FakeSite("elm", num_cases=100), FakeSite("oak")), said)
    assert not any("dominates every mean" in text for text in warnings(fair, said))


def test_a_site_has_learnt_nothing_of_one_whose_name_begins_like_its_own() -> None:
    own = LocalOptions(personal=("decoder.*weight",))
    said = options("ash", "ash2", model=ModelOptions("multi_unet", (4, 8), norm="batch"), local=own)
    roster = enrolled(told(ASH, FakeSite("ash2", ("FLAIR", "T1"))), said)
    info = info_at_site(roster.info, roster, said, "ash", {"T1": ("ash/ash", "ash2/ash2")})
    assert info.trained_on["T1"] == ("ash/ash",)


def test_validation_needs_cases_and_a_label_of_the_run() -> None:
    lesion, core = LabelSpace.of(["lesion"]), LabelSpace.of(["core"])
    (site, without) = told(ASH, FakeSite("elm", num_validation=0)).values()
    assert [has_validation(site, lesion), has_validation(site, core), has_validation(without, lesion)] == [
        True,
        False,
        False,
    ]
