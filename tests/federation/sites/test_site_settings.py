"""A site's settings."""

from pathlib import Path

import pytest

from multiseg.errors import UsageError
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site_settings import SiteSettings, read_site

MINIMAL = 'site = "alder"\nserver = "centre.example:8443"\nstore = "brain.zarr"\n'


def read(folder: Path, text: str) -> SiteSettings:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return read_site(path)


def test_paths_begin_at_the_file(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL + 'key = "/etc/keys/alder.key"\n')
    assert settings.store == str(tmp_path / "brain.zarr")
    assert settings.state == tmp_path / "state"
    assert settings.ca == tmp_path / "ca.crt"
    assert settings.key == Path("/etc/keys/alder.key")


def test_what_may_leave(tmp_path: Path) -> None:
    leaves = read(tmp_path, MINIMAL + "[leaves]\nmasked = true\nnoise = 0.5\nclip = 1.0\ncases = 10\n").leaves
    assert leaves == Leaves(masked=True, noise=0.5, clip=1.0, cases=10)


def test_a_store_elsewhere_stays_a_url(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL.replace("brain.zarr", "s3://bucket/brain.zarr")).store == "s3://bucket/brain.zarr"


@pytest.mark.parametrize("server", ["localhost:8443", "10.0.0.7:443", "[2001:db8::1]:8443"])
def test_addresses(tmp_path: Path, server: str) -> None:
    host, port = read(tmp_path, MINIMAL.replace("centre.example:8443", server)).address()
    assert (host, port) == (server.rpartition(":")[0].strip("[]"), int(server.rpartition(":")[2]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('approved = ["abc"]', "approved holds 'abc'"),
        ("workers = -1", "workers is -1"),
        ('cache = "much"', "much"),
        ("wrokers = 2", "wrokers"),
        ("[leaves]\nnoise = -1.0", "noise -1.0"),
        ("[leaves]\nleast = 0", "least 0"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, MINIMAL + more)


@pytest.mark.parametrize(
    "server",
    ["https://centre.example:8443", "centre.example", "centre.example:x", "centre.example:0", "centre.example:99999",
     "[:::]:8443", "::1:8443", "centre..example:8443", "centre_1.example:8443"],
)  # fmt: skip
def test_a_server_is_host_and_port(tmp_path: Path, server: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        read(tmp_path, MINIMAL.replace("centre.example:8443", server))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiseg fed enrol site"):
        read_site(tmp_path / "site.toml")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_site(tmp_path)
