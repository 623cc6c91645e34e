import functools
import sys
from functools import partial

import pytest

from multiseg.errors import UsageError
from multiseg.own import blamed, check_takes, digest_of, imported, is_importable, name_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


def test_a_name_stands_for_what_its_module_holds(folder):
    (folder / "mine_a.py").write_text("class Thing:\n    def part(): return 7\n")
    assert imported("mine_a:Thing.part", "thing")() == 7


def test_a_module_that_is_not_there_says_where_to_look(folder):
    with pytest.raises(UsageError, match=r"no module 'mine_b'.*PYTHONPATH=\. multiseg"):
        imported("mine_b:Net", "network")


def test_a_module_that_misses_another_one_names_that_one(folder):
    (folder / "mine_c.py").write_text("import mine_missing\n")
    with pytest.raises(UsageError, match="cannot import the network 'mine_c:Net': No module named 'mine_missing'"):
        imported("mine_c:Net", "network")


def test_a_name_that_the_module_has_not(folder):
    (folder / "mine_d.py").write_text("Net = 1\n")
    with pytest.raises(UsageError, match="mine_d has no Nett"):
        imported("mine_d:Nett", "network")


@pytest.mark.parametrize("body", ["1 / 0", "raise SystemExit(0)", "def broken(:"])
def test_a_module_that_fails_is_an_error_with_its_line(folder, body):
    (folder / "mine_e.py").write_text(f"\n{body}\n")
    with pytest.raises(UsageError, match="cannot import the network 'mine_e:Net': "):
        imported("mine_e:Net", "network")


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:run", "builtins:eval", "antigravity:geohash", "xml.sax:parse"]
)
def test_pythons_own_library_is_not_even_imported(name):
    before = set(sys.modules)
    with pytest.raises(UsageError, match="in Python's standard library"):
        imported(name, "network")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "name", ["__main__:Net", "pip.__main__:x", "a:", ":a", "a:b:c", "a/b:c", "torch:nn.__dict__", "m:<lambda>"]
)
def test_what_is_no_name_is_told_how_to_write_one(name):
    with pytest.raises(UsageError, match="Write module:name, such as mynet:Net"):
        imported(name, "network")


def test_names_of_things():
    assert name_of(functools.reduce) == "_functools:reduce"
    assert name_of(UsageError) == "multiseg.errors:UsageError"
    assert name_of(partial(blamed, "a", name="b")) == "multiseg.own:blamed('a', name='b')"
    assert name_of(partial(blamed, "a")) != name_of(partial(blamed, "b"))


def test_only_what_its_name_leads_back_to_is_importable():
    assert is_importable(UsageError)
    assert not is_importable(lambda: 1)
    assert not is_importable(partial(blamed, "a"))
    twin = type("UsageError", (), {"__module__": "multiseg.errors", "__qualname__": "UsageError"})
    assert not is_importable(twin)


def test_the_number_of_arguments_is_checked_before_a_call():
    check_takes(lambda a, b, c=1: None, 2, "objective", "(a, b)")
    check_takes(lambda *a: None, 2, "objective", "(a, b)")
    with pytest.raises(UsageError, match=r"does not take \(a, b\): missing a required argument: 'c'"):
        check_takes(lambda a, b, c: None, 2, "objective", "(a, b)")
    with pytest.raises(UsageError, match=r"the metric 7 is a int, which is not callable. Give \(a, b\)"):
        check_takes(7, 2, "metric", "(a, b)")


def test_what_own_code_raises_names_it_and_the_line():
    with (
        pytest.raises(
            UsageError, match=r"the metric mine failed: ZeroDivisionError: division by zero \(.*test_own.py, line"
        ),
        blamed("metric", "mine"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(MemoryError), blamed("metric", "mine"):
        raise MemoryError


def test_a_changed_file_has_another_digest(folder):
    file = folder / "mine_f.py"
    file.write_text("def metric(): return 1\n")
    metric = imported("mine_f:metric", "metric")
    before = digest_of(metric)
    file.write_text("def metric(): return 2\n")
    assert len(before) == 64
    assert digest_of(metric) != before
    assert digest_of(len) == ""
