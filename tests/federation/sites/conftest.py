"""What tests of a site share: what three sites say of themselves, and what one has come to in three rounds."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from asked import KEEPING, described, joint_info, round_task, site_of

from multiseg.federation.centre.site_roster import SiteInfo
from multiseg.federation.messages import Answer
from multiseg.federation.sites.answering import answer
from multiseg.models.saved import ModelInfo


@pytest.fixture(scope="session")
def infos(site_stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, SiteInfo]:
    """What each site says of itself."""
    return described(site_stores, tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="session")
def info(infos: dict[str, SiteInfo]) -> ModelInfo:
    """The model of all three."""
    return joint_info(infos)


@dataclass(frozen=True)
class Smooth:
    """Rounds of alder, which keeps its norms and its optimiser: the answers, and its state after each."""

    answers: list[Answer]
    states: list[Path]

    def after(self, number: int, state: Path) -> None:
        """Put its state after a round into a folder."""
        shutil.copytree(self.states[number - 1], state, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def smooth(site_stores: dict[str, str], info: ModelInfo, tmp_path_factory: pytest.TempPathFactory) -> Smooth:
    """Three rounds in which nothing happens."""
    folder = tmp_path_factory.mktemp("smooth")
    site, answers, states = site_of("alder", site_stores, folder / "now"), [], []
    for number in (1, 2, 3):
        answers.append(answer(round_task(info, number, options=KEEPING), site))
        assert not answers[-1].error
        states.append(Path(shutil.copytree(folder / "now", folder / str(number))))
    return Smooth(answers, states)
