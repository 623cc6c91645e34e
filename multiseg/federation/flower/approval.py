"""Checks that a server runs the multiseg that is installed here and that the site has approved."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 12
"""Of a hash's 64 digits, in a text."""


@dataclass(frozen=True)
class Approval:
    """The apps that a site has approved, and the one that runs here.

    Attributes:
        apps: SHA-256 of the apps in `approved`; several during an update.
        own: SHA-256 of the app that runs here.
        version: of the multiseg that runs here.
    """

    apps: tuple[str, ...]
    own: str
    version: str


@dataclass(frozen=True)
class AppRefusal:
    """Why a server is refused: for the server, and for a person at the site."""

    to_server: str
    to_person: str


def why_refused(app: str, approval: Approval) -> AppRefusal | None:
    """Why a server that runs an app, given by its SHA-256, is refused; None if it is not.

    The message to the server reveals only the version here and the first digits of two hashes.
    """
    asked, own = app[:SHOWN], approval.own[:SHOWN]
    here = f"multiseg {approval.version} with the app {own}"
    if app == approval.own and app in approval.apps:
        return None
    if app == approval.own:
        return AppRefusal(
            f"it runs the same ({here}), but has not approved it",
            f"refused: the server runs the app {app}, which `approved` in site.toml does not hold. It is the app of "
            f"multiseg {approval.version} installed here: compare it with the centre's, by telephone, and write it "
            "into `approved`.",
        )
    held = "holds it, but the installed one runs here" if app in approval.apps else "does not hold it"
    return AppRefusal(
        f"it runs {here}, but the server's app is {asked}",
        f"refused: the server runs the app {app}, which is not the one installed here ({here}); `approved` in "
        f"site.toml {held}. Install the centre's version, compare the output of `multiseg fed app --hash` there and "
        "here, write it into `approved`, and join again.",
    )
