"""A site's conditions for a round before it trains: protection, numbers of cases, and what may leave."""

from __future__ import annotations

from multiseg.errors import FederationError
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.drawing import drawn_in_round, trained_by
from multiseg.federation.sites.policy import Leaves, check_tensors, leaves_metric
from multiseg.federation.sites.site import Order, Site
from multiseg.store.reader import Store


def check_round(order: Order, site: Site, store: Store) -> None:
    """Raises FederationError, before any work, if the site would not let the round's answer leave."""
    check_protection(order.options, site.leaves)
    if not site.trains:
        raise FederationError(f"site {site.name} does not let others train on its data.")
    drawn = drawn_in_round(order, store, site)
    needed = max(site.leaves.cases, site.leaves.least)
    if len(drawn) < needed:
        raise FederationError(
            f"this site trains on {needed} cases or more, of databases with {site.leaves.least} or more, but the run "
            "would draw from fewer: its labels, sequences, weights of databases or num_cases exclude the others."
        )
    stream, fit = order.options.stream, order.options.fit
    if order.options.local.steps * stream.batch_size * fit.accumulate < site.leaves.least:
        raise FederationError(
            f"a round of {order.options.local.steps} steps of {stream.batch_size * fit.accumulate} patches shows fewer "
            f"than {site.leaves.least} cases, the least for this site: raise local.steps or stream.batch_size."
        )
    check_tensors((part.name for part in trained_by(order, drawn, store, site.leaves.least)), site.leaves)


def check_protection(options: FederationOptions, leaves: Leaves) -> None:
    """Raises FederationError if the run protects less than the site asks for, or needs what the site keeps back."""
    privacy = options.privacy
    if leaves.masked and not privacy.masked:
        raise FederationError("this site trains only under masks: set privacy.masked = true.")
    if privacy.noise < leaves.noise:
        raise FederationError(
            f"this site asks for privacy.noise of {leaves.noise:g} or more, but the run has {privacy.noise:g}."
        )
    if leaves.clip and not 0 < privacy.clip <= leaves.clip:
        raise FederationError(
            f"this site asks for privacy.clip above 0 and up to {leaves.clip:g}, but the run has {privacy.clip:g}."
        )
    if options.schedule.cross_site and not leaves.to_sites:
        raise FederationError(
            "the run would give this site's model to the other sites (schedule.cross_site), which this site does not "
            "allow (to_sites)."
        )
    if options.aggregate.weights == "exposure" and not (leaves.counts and leaves_metric("exposure/", leaves)):
        raise FederationError(
            "this site does not report numbers of patches, but the run weighs sites by them: set aggregate.weights to "
            '"cases" or "equal".'
        )
