"""Before the first round: wait for the sites, check that they fit, and prepare the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.centre import scope
from multiseg.federation.centre.exchange import Desk, SetAsideError, ask, exchange
from multiseg.federation.centre.experiment_folder import Best, State, read_fingerprint, save_fingerprint
from multiseg.federation.centre.site_info import site_info
from multiseg.federation.centre.site_roster import Roster, enrolled, warnings
from multiseg.federation.messages import DESCRIBE, FINGERPRINT, Answer
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo


def handshake(desk: Desk, stored: State | None) -> State:
    """The state to start or resume from, once every site has described itself.

    A new run waits for all of its sites as long as it takes. A resumed run knows them already, and waits for sites
    beyond its quorum only as long as a round does. With a quorum a site without a valid description is set aside.

    Raises:
        SetAsideError: sites without a valid description, if a quorum is left.
        FederationError: sites that do not fit, each with its reasons.
        UsageError: a setting does not fit the network.
    """
    options = desk.options
    names = (*options.sites, *options.held_out)
    known = {**stored.roster.sites, **stored.roster.held_out} if stored else {}
    terms = desk.terms(refuse=_why_no_description)
    if not known.keys() >= set(names):
        terms = replace(terms, least=options.schedule.quorum or len(names), deadline_s=math.inf)
    number = stored.round if stored else 0
    outcome = exchange(desk, {name: desk.task(DESCRIBE, number) for name in names}, terms)
    answers = outcome.answers
    if unknown := {name: why for name, why in outcome.failed.items() if name not in known}:
        raise SetAsideError(unknown)
    infos = {**known, **{name: site_info(answer) for name, answer in answers.items()}}
    roster = enrolled(infos, options, stored.roster.info if stored else None)
    scope.check_personal(roster.parts, options)
    for text in (*warnings(roster, options), *scope.warnings(roster, options)):
        desk.note(number, text)
    if options.privacy.fingerprint and not read_fingerprint(desk.folder).keys() >= set(options.sites):
        _take_fingerprint(desk, roster)
    return _resumed(desk, stored, roster) if stored else State(0, roster, fresh(roster.info, options.seed))


def fresh(info: ModelInfo, seed: int) -> dict[str, Tensor]:
    """The initial weights of a run, by tensor name; the global generator stays unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(info.builder, len(info.axis), info.space.num_logits, **info.numbers)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def grown(network: Mapping[str, Tensor], info: ModelInfo, seed: int) -> dict[str, Tensor]:
    """The weights of a network with more sequences: the old values come first along every axis, the rest is fresh."""
    new = fresh(info, seed)
    for name, tensor in network.items():
        new[name][tuple(slice(n) for n in tensor.shape)] = tensor
    return new


def _why_no_description(answer: Answer) -> str:
    try:
        site_info(answer)
    except FederationError as error:
        return str(error)
    return ""


def _take_fingerprint(desk: Desk, roster: Roster) -> None:
    tasks = {name: desk.task(FINGERPRINT, 0, least=desk.options.privacy.least) for name in desk.options.sites}
    outcome = ask(desk, 0, tasks, desk.terms(described=roster.described))
    save_fingerprint(desk.folder, {name: dict(answer.body) for name, answer in outcome.answers.items()})


def _resumed(desk: Desk, stored: State, roster: Roster) -> State:
    """The stored state for a roster that may have changed since."""
    before, now = set(stored.roster.sites), set(roster.sites)
    network, scored = stored.network, stored.scored
    if roster.info.axis != stored.roster.info.axis:
        network, scored = grown(network, roster.info, desk.options.seed), -1
        new = [name for name in roster.info.axis if name not in stored.roster.info.axis]
        desk.note(stored.round, f"the network grows a channel for {', '.join(new)}.")
    state = replace(stored, roster=roster, network=network, scored=scored)
    if state.round < desk.options.schedule.rounds:
        state = replace(state, final={})
    if before == now:
        return state
    text = f"joined: {', '.join(sorted(now - before)) or 'none'}; left: {', '.join(sorted(before - now)) or 'none'}"
    desk.note(stored.round, f"{text}. Scores over other sites cannot be compared, so the best model is chosen again.")
    if now - before and state.round >= desk.options.schedule.rounds:
        late = ", ".join(sorted(now - before))
        desk.note(stored.round, f"all rounds are done: {late} will only test the model, which learns nothing from it.")
    return replace(state, mean=Best(), worst=Best(), scored=-1, final={})
