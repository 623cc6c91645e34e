"""The settings of one federated run, and its file: sites, model, training, aggregation and privacy."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from multiseg.config import read_settings
from multiseg.errors import UsageError
from multiseg.federation.strategies import STRATEGIES, AggregateOptions, check_aggregate
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.mirror import check_sides
from multiseg.models.builders import NETWORKS
from multiseg.own import is_own
from multiseg.training.fit import FitOptions
from multiseg.training.run_folder import ModelOptions, flat, numbers_of, seeded

WEIGHTS = ("cases", "equal", "exposure")
UNITS = ("parts", "tensors")
OPTIMISERS = ("adam", "sgd")
PAYLOADS = ("float32", "float16")
MOST_KEPT = 100
"""The largest `keep_rounds`."""
LEAST_MASKED = 3
"""Sites that a masked sum needs before it hides each of them."""
IGNORED = {
    "fit.num_steps": "set schedule.rounds and local.steps",
    "fit.validate_every": "set local.steps: sites validate what they receive, once a round",
    "fit.validation_cases": "set schedule.validation_cases",
    "fit.save_minutes": "leave it out: a site resumes from whole rounds",
    "stream.disk_cache": "leave it out: a site caches only in memory",
    "stream.disk_budget": "leave it out: a site caches only in memory",
}
"""Training settings that a federation ignores, and what to do instead."""
OF_A_SITE = ("stream.workers", "stream.cache")
"""Settings for simulations: each deployed site sets its own."""


@dataclass(frozen=True)
class LocalOptions:
    """What a site does in a round.

    Attributes:
        steps: optimiser steps a round.
        optimiser: "adam" or "sgd" (without momentum).
        proximal: mu of FedProx (Li et al. 2020, arXiv:1812.06127): mu / 2 * |w - w_received|^2 is added to the
            objective; 0 adds nothing.
        keep_optimiser: the site keeps the optimiser's moments from round to round instead of resetting them.
        personal: shell patterns of tensor names that never leave the site: "*norm*" for the normalisation layers, as
            in FedBN (Li et al. 2021, arXiv:2102.07623), if `model.norm` has parameters.
    """

    steps: int = 100
    optimiser: str = "adam"
    proximal: float = 0.0
    keep_optimiser: bool = False
    personal: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivacyOptions:
    """What protects the sites from the server and from each other.

    Attributes:
        clip: a site scales its whole update down to this norm before noise; 0 for no clipping.
        noise: standard deviation of the Gaussian noise in multiples of `clip`, added at the site; 0 adds none.
        delta: of the (epsilon, delta) that is reported each round.
        masked: secure aggregation: the server learns sums over three or more sites, not the update of one site.
        payload: "float16" halves the bytes of weights and updates on the wire.
        fingerprint: ask every site for intensity and size statistics before the first round.
        least: smaller counts are not reported, and others are rounded up to its multiples.
    """

    clip: float = 0.0
    noise: float = 0.0
    delta: float = 1e-5
    masked: bool = False
    payload: str = "float32"
    fingerprint: bool = False
    least: int = 5


@dataclass(frozen=True)
class ScheduleOptions:
    """When a round ends.

    Attributes:
        rounds: the total number.
        quorum: after the deadline a round closes with this many updates; 0 requires every site's.
        deadline_minutes: how long a round waits for missing sites.
        evaluate_subsets: "full" (all sequences of a case) or "all" (every subset of them) when sites evaluate the
            model they receive.
        validation_cases: cases of each database on which a site evaluates the received model. The site chooses them,
            in whole groups of its own `least` or more.
        keep_rounds: rounds before the last one that the run can be put back to; each needs the space of a model.
        cross_site: at the end every site tests the models that each of the others trained in the last round. Other
            sites then see a model that one site trained, so each site has to allow it.
    """

    rounds: int = 20
    quorum: int = 0
    deadline_minutes: float = 1440.0
    evaluate_subsets: str = "full"
    validation_cases: int = 5
    cross_site: bool = False
    keep_rounds: int = 3


@dataclass(frozen=True)
class FederationOptions:
    """All settings of one federated run: the contents of `run.toml`.

    Attributes:
        experiment: its name, by which the server and the sites resume it.
        sites: the sites that train. A run starts, and a round ends, only with all of them (see `schedule.quorum`).
        held_out: sites that only evaluate.
        labels, rest: as for training: "lesion" for every lesion, "tissue:NAME" for a tissue; `rest` says what other
            lesions count as.
        fit: the rounds set `num_steps`; the other values apply at the sites.
    """

    experiment: str
    sites: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("lesion",)
    rest: str = ""
    seed: int = 0
    model: ModelOptions = ModelOptions()
    stream: StreamOptions = StreamOptions()
    augment: AugmentOptions = AugmentOptions()
    fit: FitOptions = FitOptions()
    local: LocalOptions = LocalOptions()
    aggregate: AggregateOptions = AggregateOptions()
    privacy: PrivacyOptions = PrivacyOptions()
    schedule: ScheduleOptions = ScheduleOptions()

    def __post_init__(self) -> None:
        # Messages to sites contain every number, so the seeds that follow from the run's seed are set here.
        stream, augment = seeded(self.seed, self.stream, self.augment)
        object.__setattr__(self, "stream", stream)
        object.__setattr__(self, "augment", augment)


def check(options: FederationOptions) -> None:
    """Raises UsageError for invalid settings, alone or in combination."""
    _check_names(options)
    _check_is_ours(options)
    aggregate, local, privacy = options.aggregate, options.local, options.privacy
    for value, choices, name in (
        (aggregate.strategy, STRATEGIES, "aggregate.strategy"),
        (aggregate.weights, WEIGHTS, "aggregate.weights"),
        (aggregate.unit, UNITS, "aggregate.unit"),
        (local.optimiser, OPTIMISERS, "local.optimiser"),
        (privacy.payload, PAYLOADS, "privacy.payload"),
        (options.schedule.evaluate_subsets, ("full", "all"), "schedule.evaluate_subsets"),
    ):
        if value not in choices:
            raise UsageError(f"{name} is {value!r}: choose from {', '.join(choices)}.")
    _check_sizes(options)
    if options.schedule.rounds < 1 or local.steps < 1 or options.schedule.deadline_minutes <= 0 or privacy.least < 1:
        raise UsageError(
            f"{options.schedule.rounds} rounds of {local.steps} steps with a deadline of "
            f"{options.schedule.deadline_minutes} minutes and privacy.least = {privacy.least}: give at least 1 of each."
        )
    if not 0 <= options.schedule.keep_rounds <= MOST_KEPT:
        raise UsageError(f"schedule.keep_rounds is {options.schedule.keep_rounds}: give 0 to {MOST_KEPT}.")
    if not 0 <= options.schedule.quorum <= len(options.sites):
        raise UsageError(
            f"schedule.quorum is {options.schedule.quorum}, but there are {len(options.sites)} sites: give at most "
            "their number, or 0 for all of them."
        )
    if not local.proximal >= 0:
        raise UsageError(f"local.proximal is {local.proximal}: give 0 or more.")
    check_aggregate(aggregate)
    _check_training(options)
    _check_privacy(options)


def _check_training(options: FederationOptions) -> None:
    """Raises UsageError for what `multiseg train` can do and a federation cannot."""
    space = LabelSpace.of(options.labels, options.rest)
    if by_pathology := [label.name for label in space.labels if label.pathology]:
        raise UsageError(
            f"a federation cannot train labels by pathology ({', '.join(by_pathology)}): list structures, such as "
            'labels = ["lesion"].'
        )
    if options.augment.flip_probability:
        check_sides(space)
    if options.fit.ema:
        raise UsageError("fit.ema is only for training without federation: the rounds are an average already.")
    if options.fit.class_weights != "none":
        raise UsageError("fit.class_weights is only for training without federation.")
    builder = options.model.builder
    if builder in NETWORKS and NETWORKS[builder].parts is None:
        raise UsageError(f"a federation cannot train a {builder} network: fine-tune the joint model at each site.")


MOST = {
    "local.steps": 1_000_000,
    "schedule.rounds": 1_000_000,
    "schedule.validation_cases": 1_000_000,
    "stream.batch_size": 100_000,
    "stream.ahead": 10_000,
    "fit.accumulate": 100_000,
}
"""Limits for any run. Each site sets its own, far lower."""
SMALLEST_PATCH, LARGEST_PATCH = 4, 4096
MOST_WIDTHS, WIDEST = 16, 65_536


def _check_sizes(options: FederationOptions) -> None:
    """Raises UsageError for numbers that would take too much time or memory anywhere."""
    for name, limit in MOST.items():
        value = attrgetter(name)(options)
        if value > limit:
            raise UsageError(f"{name} is {value}: give {limit} at most.")
    patch, widths = options.stream.draw.patch, options.model.widths
    if not all(SMALLEST_PATCH <= edge <= LARGEST_PATCH for edge in patch):
        raise UsageError(f"stream.draw.patch is {list(patch)}: give edges from {SMALLEST_PATCH} to {LARGEST_PATCH}.")
    if len(widths) > MOST_WIDTHS or not all(1 <= width <= WIDEST for width in widths):
        raise UsageError(
            f"model.widths has {len(widths)} widths, from {min(widths)} to {max(widths)}: give at most {MOST_WIDTHS}, "
            f"from 1 to {WIDEST}."
        )
    if options.schedule.validation_cases < 0:
        raise UsageError(f"schedule.validation_cases is {options.schedule.validation_cases}: give 0 or more.")


def without(options: FederationOptions, gone: Collection[str]) -> FederationOptions:
    """The settings of the run without these sites.

    Raises:
        UsageError: too few sites are left for the run's settings.
    """
    sites = tuple(site for site in options.sites if site not in gone)
    quorum = options.schedule.quorum if options.schedule.quorum < len(options.sites) else len(sites)
    fewer = replace(
        options,
        sites=sites,
        held_out=tuple(site for site in options.held_out if site not in gone),
        schedule=replace(options.schedule, quorum=quorum if options.schedule.quorum else 0),
    )
    check(fewer)
    return fewer


def _check_names(options: FederationOptions) -> None:
    names = (*options.sites, *options.held_out)
    for name in (options.experiment, *names):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UsageError(f"{name!r} is not a valid name: use letters, digits, '.', '_' and '-', at most 64.")
    if not options.sites or len(set(names)) < len(names):
        raise UsageError(f"a run needs sites, each listed once, but got {', '.join(names) or 'none'}.")


def _check_is_ours(options: FederationOptions) -> None:
    """Raises UsageError, before anything is imported, if the settings name code outside multiseg."""
    for name, value in (
        ("model.builder", options.model.builder),
        ("fit.objective", options.fit.objective),
        ("augment.own", options.augment.own),
    ):
        refuse_own(value, name)
    numbers_of(options.model)


def refuse_own(value: str, name: str) -> None:
    """Raises UsageError if a setting names code outside multiseg: sites never run code that they are sent."""
    if is_own(value) or (name == "augment.own" and value):
        raise UsageError(
            f"{name} is {value!r}: a federation runs only multiseg's own code, since no site executes code it is sent."
        )


def _check_privacy(options: FederationOptions) -> None:
    privacy = options.privacy
    if min(privacy.clip, privacy.noise) < 0 or not 0 < privacy.delta < 1:
        raise UsageError(
            f"privacy.clip is {privacy.clip}, noise {privacy.noise} and delta {privacy.delta}: give 0 or more, and a "
            "delta between 0 and 1."
        )
    if privacy.noise and not privacy.clip:
        raise UsageError("privacy.noise is in multiples of privacy.clip: set that, too.")
    if not privacy.masked:
        return
    if STRATEGIES[options.aggregate.strategy].left_out or options.aggregate.max_update_norm:
        raise UsageError(
            "with privacy.masked the server cannot see single updates, so it cannot trim, take a median or clip: use "
            "a fedavg strategy, and privacy.clip."
        )
    if options.schedule.cross_site:
        raise UsageError("with privacy.masked nobody sees the model of one site: leave schedule.cross_site = false.")
    if options.aggregate.unit == "tensors":
        raise UsageError('with privacy.masked sums are taken by part: leave aggregate.unit = "parts".')
    if options.aggregate.weights == "exposure":
        raise UsageError('with privacy.masked weights are fixed before the round: "cases" or "equal".')
    if len(options.sites) < LEAST_MASKED or options.schedule.quorum not in (0, len(options.sites)):
        raise UsageError(
            f"privacy.masked needs {LEAST_MASKED} sites or more, and all of them in every round: a second sum without "
            "one site would reveal what that site had sent."
        )


def read_run(path: Path, hint: str) -> dict[str, Any]:
    """The settings in a federated run's file, as tables.

    Args:
        hint: how to get such a file, for the error if it is missing.

    Raises:
        UsageError: it is missing, not valid TOML, or sets something that is unknown or ignored.
    """
    settings = read_settings(path, FederationOptions, hint)
    ignored = sorted(IGNORED.keys() & flat(settings).keys())
    if ignored:
        listed = "; ".join(f"{name} ({IGNORED[name]})" for name in ignored)
        raise UsageError(f"{path} has settings that a federation ignores: {listed}.")
    return settings


def drop_ignored(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those that a federation ignores."""
    return {
        key: drop_ignored(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in IGNORED
    }


def left_to_sites(settings: Mapping[str, Any]) -> list[str]:
    """A note on the settings that deployed sites ignore, if there are any."""
    names = [name for name in OF_A_SITE if name in flat(settings)]
    if not names:
        return []
    return [f"Ignored, since each site sets its own in site.toml: {', '.join(names)}."]
