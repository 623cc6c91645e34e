"""Which server a site answers: the one that runs the multiseg installed here, if the site has approved it."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 12
"""Of a hash's 64 digits, in a text."""


@dataclass(frozen=True)
class Approval:
    """What a site approved, and what would answer.

    Attributes:
        apps: SHA-256 of the apps in `approved`; several during an update.
        own: SHA-256 of the app of the multiseg that runs here.
        version: of the multiseg that runs here.
    """

    apps: tuple[str, ...]
    own: str
    version: str


@dataclass(frozen=True)
class AppRefusal:
    """Why a server gets no answer: for the server, and for a person at the site."""

    to_server: str
    to_person: str


def why_refused(app: str, approval: Approval) -> AppRefusal | None:
    """Why a server that runs an app, by its SHA-256, is refused; None where it is not.

    What the server is told names the version here and the beginnings of two hashes, and nothing else of the site.
    """
    asked, own = app[:SHOWN], approval.own[:SHOWN]
    here = f"multiseg {approval.version}, whose app is {own}"
    if app == approval.own and app in approval.apps:
        return None
    if app == approval.own:
        return AppRefusal(
            f"it runs the same ({here}), but has not approved it",
            f"refused: the server runs the app {app}, which `approved` in site.toml does not hold. It is that of the "
            f"multiseg {approval.version} installed here: compare it with the centre's, by telephone, and write it "
            "into `approved`.",
        )
    held = "holds it, but what runs here is the installed one" if app in approval.apps else "does not hold it"
    return AppRefusal(
        f"it runs {here}, and the server's app is {asked}",
        f"refused: the server runs the app {app}, which is not the one installed here ({here}); `approved` in "
        f"site.toml {held}. Install the version that the centre names, compare what `multiseg fed app --hash` says "
        "there and here, write it into `approved`, and join anew.",
    )
