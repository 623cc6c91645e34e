import pytest
import torch

from multiseg.errors import FederationError, UsageError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS, build
from multiseg.models.network_parts import difference, groups_of, joined, moved, parts, sequence_in, split, trained_parts
from multiseg.models.saved import ModelInfo
from multiseg.models.two_unets import numbers_from

NUMBERS = {"widths": (4, 6, 8), "dropout": 0.0, "norm": "batch"}
SEQUENCES = ("PD", "FLAIR", "T1", "T2")
LABELS = ("lesion", "oedema", "core", "shell")
NAMES = [name for name, network in NETWORKS.items() if network.parts and not network.parts.kinds]


def info_of(builder, num_sequences=3, num_labels=2):
    labels = LabelSpace(tuple(SpaceLabel(name, "lesion") for name in LABELS[:num_labels]))
    axis = ModalityAxis(SEQUENCES[:num_sequences])
    return ModelInfo(builder, NUMBERS, axis, labels, (1.0, 1.0, 1.0), (8, 8, 8), {}, {})


def network_of(info):
    torch.manual_seed(1)
    return build(info.builder, len(info.axis), info.space.num_logits, **info.numbers)


def shapes_of(info):
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in network_of(info).state_dict().items() if "num_" not in name}


def grown(info, more):
    """By tensor, 1 wherever `more` has a value and `info` has none; see `training.start` on where values come."""
    before = shapes_of(info)
    new = {name: torch.ones(shape) for name, shape in shapes_of(more).items()}
    for name, shape in before.items():
        new[name][tuple(slice(n) for n in shape)] = 0
    return new


def marked(info, group):
    """By tensor, 1 wherever a value belongs to the group."""
    found = {name: torch.zeros(shape) for name, shape in shapes_of(info).items()}
    for piece in split(found, [part for part in parts(info) if part.group == group]).values():
        piece += 1
    return found


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("builder", NAMES)
def test_every_value_is_in_one_part(builder, num_labels):
    info = info_of(builder, num_labels=num_labels)
    found = parts(info)
    state = {name: torch.zeros(shape) for name, shape in shapes_of(info).items()}
    pieces = split(state, found)
    assert len(pieces) == len(found)
    for part in found:
        assert pieces[part.name].shape == part.shape
        assert part.dim is None or (part.start < state[part.tensor].shape[part.dim] and part.length == 1)
        pieces[part.name] += 1
    assert all(bool((tensor == 1).all()) for tensor in state.values())
    assert {part.tensor for part in found} == set(state)


@pytest.mark.parametrize("num_sequences", [1, 2, 3])
@pytest.mark.parametrize("builder", NAMES)
def test_what_a_sequence_more_adds_is_that_sequences(builder, num_sequences):
    before, after = (info_of(builder, n) for n in (num_sequences, num_sequences + 1))
    new = SEQUENCES[num_sequences]
    added, owned = grown(before, after), marked(after, new)
    assert all(torch.equal(added[name], owned[name]) for name in added)
    assert sum(tensor.sum() for tensor in added.values()) > 0
    # Nobody else's parts have changed.
    assert [part for part in parts(after) if part.group != new] == list(parts(before))


@pytest.mark.parametrize("builder", NAMES)
def test_what_a_label_more_adds_is_that_labels(builder):
    before, after = info_of(builder, num_labels=2), info_of(builder, num_labels=3)
    added, owned = grown(before, after), marked(after, "label:core")
    assert all(torch.equal(added[name], owned[name]) for name in added)
    assert [part for part in parts(after) if part.group != "label:core"] == list(parts(before))
    assert {part.group for part in parts(before)} == {"", *SEQUENCES[:3], "label:lesion", "label:oedema"}


@pytest.mark.parametrize("builder", NAMES)
def test_the_one_logit_of_one_label_is_everybodys(builder):
    assert {part.group for part in parts(info_of(builder, num_labels=1))} == {"", *SEQUENCES[:3]}


@pytest.mark.parametrize("seen", [(0, 1), (1, 2), (2,)])
@pytest.mark.parametrize("builder", NAMES)
def test_a_site_changes_nothing_of_the_sequences_that_it_lacks(builder, seen):
    info = info_of(builder)
    network = network_of(info)
    present = torch.zeros(4, 3, dtype=torch.bool)
    present[:, list(seen)] = True
    images = torch.randn(4, 3, 8, 8, 16, generator=torch.Generator().manual_seed(2))
    network(images, present).square().sum().backward()
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in network.named_parameters()}
    trainable = [part for part in parts(info) if part.tensor in gradients]
    touched = {part.name for part in trainable if split(gradients, [part])[part.name].any()}
    own = {info.axis[channel] for channel in seen}
    assert {part.group for part in trainable if part.name in touched} & set(SEQUENCES) <= own
    if len(seen) > 1:  # alone, a sequence has all of the attention, whatever its score
        silent = [p.name for p in trainable if p.group in own and p.name not in touched]
        # A bias before a norm has no effect but for rounding.
        assert [name for name in silent if "bias" not in name] == []


def test_names_say_to_whom_a_part_belongs():
    found = {part.name: part for part in parts(info_of("multi_unet"))}
    stem = found["encoder.0.first.conv.weight[FLAIR]"]
    assert (stem.tensor, stem.dim, stem.start, stem.length) == ("encoder.0.first.conv.weight", 1, 1, 1)
    assert (stem.group, stem.shape) == ("FLAIR", (4, 1, 3, 3, 3))
    assert found["decoder.1.reduce.bias[background]"].group == ""
    row = found["decoder.1.reduce.bias[label:oedema]"]
    assert (row.group, row.dim, row.start, row.shape) == ("label:oedema", 0, 2, (1,))
    whole = found["encoder.0.first.conv.bias"]
    assert (whole.group, whole.dim, whole.start, whole.length) == ("", None, 0, 0)
    assert "encoder.0.first.norm.running_var" in found
    assert not any("num_batches_tracked" in name for name in found)
    other = {part.name: part.group for part in parts(info_of("lf_unet"))}
    assert other["fusion.slots.0.bias[PD]"] == "PD"


def test_a_network_without_rules_is_refused():
    with pytest.raises(UsageError, match=r"parts of a progressive belong .*: choose one of multi_unet, lf_unet"):
        parts(info_of("progressive"))


@pytest.mark.parametrize("builder", NAMES)
def test_split_and_joined_again(builder):
    info = info_of(builder)
    found, state = parts(info), network_of(info).state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    back = joined(split(other, found), state, found)
    for name, tensor in back.items():
        assert torch.equal(tensor, (other if tensor.is_floating_point() else state)[name])
    assert not torch.equal(state["num" if "num" in state else found[0].tensor], other[found[0].tensor])


def test_what_gets_no_piece_stays():
    info = info_of("multi_unet")
    found, state = parts(info), network_of(info).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    new = joined({"encoder.0.first.conv.weight[T1]": torch.full((4, 1, 3, 3, 3), 7.0).half()}, state, found)
    stem = new["encoder.0.first.conv.weight"]
    assert stem.dtype == torch.float32
    assert bool((stem[:, 2] == 7).all())
    assert torch.equal(stem[:, :2], before["encoder.0.first.conv.weight"][:, :2])
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert new["encoder.1.first.conv.weight"] is state["encoder.1.first.conv.weight"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "encoder.0.first.conv.weight",
            (4, 3, 3, 3, 3),
            r"weight' of shape \(4, 3, 3, 3, 3\) .* there is no such part",
        ),
        (
            "encoder.0.first.conv.weight[T1]",
            (4, 3, 3, 3),
            r"\(4, 3, 3, 3\) does not fit the network: its shape is \(4, 1, 3, 3, 3\)",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_refused(name, shape, message):
    info = info_of("multi_unet")
    with pytest.raises(FederationError, match=message):
        joined({name: torch.zeros(shape)}, network_of(info).state_dict(), parts(info))


def test_a_difference_leads_back():
    info = info_of("maf_unet")
    found, old = parts(info), network_of(info).state_dict()
    new = {name: tensor + 0.25 if tensor.is_floating_point() else tensor + 3 for name, tensor in old.items()}
    chosen = [part for part in found if part.group == "T1"]
    change = difference(new, old, chosen)
    assert set(change) == {part.name for part in chosen}
    there = moved(change, old, found)
    for part in found:
        assert torch.allclose(split(there, [part])[part.name], split(new if part in chosen else old, [part])[part.name])
    with pytest.raises(FederationError, match="'elsewhere' of shape"):
        moved({"elsewhere": torch.zeros(1)}, old, found)


def test_what_a_site_trains():
    found = parts(info_of("multi_unet"))
    groups = {part.group for part in trained_parts(found, {"", "T1", "SWI", "label:oedema"})}
    assert groups == {"", "T1", "label:oedema"}
    everything = {"", *SEQUENCES, *(f"label:{name}" for name in LABELS)}
    assert trained_parts(found, everything) == found
    without = trained_parts(found, everything, ("*norm*", "decoder.1.*"), ("encoder.0.first.conv.weight[T1]",))
    away = set(found) - set(without)
    assert {part.name for part in away if "norm" not in part.tensor and not part.tensor.startswith("decoder.1.")} == {
        "encoder.0.first.conv.weight[T1]"
    }
    assert any("norm" in part.tensor for part in away)
    assert not any("norm" in part.tensor or part.tensor.startswith("decoder.1.") for part in without)


BRANCHED = LabelSpace((SpaceLabel("CSF", "tissue"), SpaceLabel("core", "lesion"), SpaceLabel("white matter", "tissue")))


def branched(axis=("FLAIR", "T1")):
    axis = ModalityAxis(axis)
    numbers = NUMBERS | {"norm": "instance_affine"} | numbers_from(axis, BRANCHED)
    return ModelInfo("two_unets", numbers, axis, BRANCHED, (1.0, 1.0, 1.0), (8, 8, 8), {}, {})


def test_every_value_of_a_branch_is_of_its_kind():
    info = branched()
    found, state = parts(info), {name: torch.zeros(shape) for name, shape in shapes_of(info).items()}
    for piece in split(state, found).values():
        piece += 1
    assert all(bool((tensor == 1).all()) for tensor in state.values())
    groups = {part.name: part.group for part in found}
    assert set(groups.values()) == {
        "kind:tissue",
        "kind:tissue/T1",  # it does not see FLAIR
        "kind:lesion",
        "kind:lesion/FLAIR",
        "kind:lesion/T1",
        "label:CSF",
        "label:core",
        "label:white matter",
    }
    assert groups["anatomy.encoder.0.first.conv.weight[FLAIR]"] == "kind:tissue"
    assert groups["anatomy.decoder.1.reduce.bias[background]"] == "kind:tissue"
    assert groups["lesion.decoder.1.reduce.bias[label:core]"] == "label:core"
    assert "lesion.decoder.1.reduce.bias[label:CSF]" not in groups
    assert all(group.partition(":")[2].startswith("tissue") for name, group in groups.items() if "anatomy.enc" in name)


def test_sites_train_the_branch_of_what_they_annotate():
    found = parts(branched())
    tissues = groups_of(("T1",), ("CSF", "white matter"), BRANCHED)
    lesions = groups_of(("FLAIR",), ("core",), BRANCHED)
    assert tissues == {"", "T1", "kind:tissue", "kind:tissue/T1", "label:CSF", "label:white matter"}
    of_tissues, of_lesions = trained_parts(found, tissues), trained_parts(found, lesions)
    assert {part.tensor.partition(".")[0] for part in of_tissues} == {"anatomy"}
    assert {part.tensor.partition(".")[0] for part in of_lesions} == {"lesion"}
    assert set(of_tissues) == {part for part in found if part.tensor.startswith("anatomy.")}
    left = {part.name for part in found if part.tensor.startswith("lesion.")} - {part.name for part in of_lesions}
    assert left == {"lesion.encoder.0.first.conv.weight[T1]"}


def test_a_sequence_more_is_added_to_the_branches():
    before, after = branched(("FLAIR", "T1")), branched(("FLAIR", "T1", "SWI"))
    new = [part for part in parts(after) if part not in parts(before)]
    assert {part.name: part.group for part in new} == {
        "anatomy.encoder.0.first.conv.weight[SWI]": "kind:tissue",
        "lesion.encoder.0.first.conv.weight[SWI]": "kind:lesion/SWI",
    }
    assert set(parts(before)) < set(parts(after))


@pytest.mark.parametrize(
    ("group", "sequence"), [("", ""), ("T1", "T1"), ("label:core", ""), ("kind:lesion", ""), ("kind:lesion/T1", "T1")]
)
def test_the_sequence_of_a_group(group, sequence):
    assert sequence_in(group) == sequence
