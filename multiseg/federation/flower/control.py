"""The SuperLink's control calls, on loopback: register sites; start, list, stop and read runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiseg.errors import FederationError
from multiseg.federation.flower.environment import without_proxies
from multiseg.federation.flower.flower_words import RUN_IS_LOST
from multiseg.federation.identity.home import LINK_CERTIFICATE, Home

PAGE = 100
"""Runs per request."""


@dataclass(frozen=True)
class SuperLinkNode:
    """A site as the SuperLink knows it.

    Attributes:
        status: "registered", "online", "offline".
        since: when it last came online; "" for never.
    """

    node_id: int
    name: str
    public_key: str
    status: str
    since: str


@dataclass(frozen=True)
class SuperLinkRun:
    """A run as the SuperLink knows it.

    Attributes:
        status: "pending", "starting", "running", "finished".
        outcome: of a finished run: "completed", "failed", "stopped".
        bytes_sent, bytes_received: between the SuperLink and the sites.
    """

    run_id: int
    experiment: str
    status: str
    outcome: str
    details: str
    settings: Mapping[str, Any]
    submitted: str
    finished: str
    bytes_sent: int
    bytes_received: int

    @property
    def lost(self) -> bool:
        """Whether it failed because the server lost it, not because of its own error."""
        return self.outcome == "failed" and self.details.startswith(RUN_IS_LOST)


class Control:
    """The control calls of one SuperLink; every method raises FederationError if it refuses or does not answer.

    Args:
        client: Flower's `ControlHttpClient`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def _call(self, name: str, /, **fields: Any) -> Any:
        """Flower's answer to one of its calls."""
        from flwr.proto import control_pb2

        with _errors_as_ours():
            return getattr(self._client, name)(getattr(control_pb2, f"{name}Request")(**fields))

    def nodes(self) -> list[SuperLinkNode]:
        """The sites that are registered."""
        return [
            SuperLinkNode(node.node_id, node.name, node.public_key.decode(), node.status, node.last_activated_at)
            for node in self._call("ListNodes").nodes_info
            if node.status != "unregistered"
        ]

    def register(self, name: str, public_key: str) -> int:
        """Register a site; its number."""
        return int(self._call("RegisterNode", public_key=public_key.encode(), name=name).node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a site."""
        self._call("UnregisterNode", node_id=node_id)

    def start(self, settings: Mapping[str, Any]) -> int:
        """Submit a run with these settings; its number."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.supercore.fab import Fab

        from multiseg.federation.fab import app_bytes, app_hash

        fab = fab_to_proto(Fab(app_hash(), app_bytes(), {}))
        config = user_config_to_proto({"settings": json.dumps(settings, sort_keys=True), "app": app_hash()})
        answer = self._call("StartRun", fab=fab, override_config=config)
        if not answer.run_id:
            raise FederationError("the SuperLink did not start the run; its log says why.")
        return int(answer.run_id)

    def runs(self, newest: int = 0) -> list[SuperLinkRun]:
        """The `newest` runs or all, the newest first. Flower's default is only the last 20."""
        found: dict[int, Any] = {}
        while True:
            page = self._call("ListRuns", limit=newest or PAGE, skip=len(found)).run_dict
            found |= page
            if newest or len(page) < PAGE:
                break
        return sorted(map(_run, found.values()), key=lambda run: run.submitted, reverse=True)

    def stop(self, run_id: int) -> None:
        """End a run."""
        self._call("StopRun", run_id=run_id)

    def log(self, run_id: int, after: float = 0.0) -> Iterator[tuple[str, float]]:
        """A run's log after a time, in pieces with their times, until the run ends."""
        with _errors_as_ours():  # the pieces come while the call goes on
            for piece in self._call("StreamLogs", run_id=run_id, after_timestamp=after):
                yield piece.log_output, piece.latest_timestamp


@contextmanager
def controlling(home: Home) -> Iterator[Control]:
    """The control calls of a running server; the first call fails if it does not run.

    Raises:
        FederationError: it has no certificate of its SuperLink.
    """
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    with without_proxies():
        client = ControlHttpClient.from_server_address(
            home.superlink,
            False,
            _authority(home.at(LINK_CERTIFICATE)),
            [RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
    with client:
        yield Control(client)


def _authority(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FederationError(f"there is no {path}: make it with multiseg fed enrol server {path.parent}") from None


def _run(run: Any) -> SuperLinkRun:
    config = {name: value.string for name, value in run.override_config.items()}
    try:
        settings = json.loads(config.get("settings") or "{}")
    except ValueError:
        settings = {}
    return SuperLinkRun(
        run_id=run.run_id,
        experiment=str(settings.get("experiment", "")),
        status=run.status.status,
        outcome=run.status.sub_status,
        details=run.status.details,
        settings=settings,
        submitted=run.pending_at,
        finished=run.finished_at,
        bytes_sent=run.bytes_sent,
        bytes_received=run.bytes_recv,
    )


@contextmanager
def _errors_as_ours() -> Iterator[None]:
    """Raise FederationError for Flower's errors."""
    import httpx
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.TransportError as error:
        raise FederationError(
            f"the server does not answer ({type(error).__name__}): start it with multiseg fed serve HOME."
        ) from error
    except httpx.HTTPStatusError as error:
        parsed = FlowerError.from_json(error.response.text)
        reason = f"{parsed.message} {parsed.public_details or ''}".strip() if parsed else error.response.text[:200]
        raise FederationError(f"the SuperLink refused ({error.response.status_code}): {reason}") from error
