"""The page of a run: what sites and hospitals have named stands in it as text."""

from pathlib import Path
from typing import Any

from multiseg.federation.centre.run_report import page


def told(name: str, reason: str) -> dict[str, Any]:
    """A run of one round at one site, as `summary` tells it."""
    site = {"dice": 0.5, "loss": 0.7, "sent": 1, "received": 2, "seconds": 3.0}
    entry = {"round": 1, "mean": 0.5, "worst": 0.5, "sites": {name: site}, "failed": {}, "seconds": 65.0}
    counts = {"train": 5, "val": 2, "test": 1}
    database = {"num_cases": counts, "pathology": "stroke", "modalities": ["T1"]}
    event = {"event": "Refused", "time": "noon", "round": 1, "site": name, "reason": reason}
    return {
        "folder": str(Path("runs") / name),
        "round": 1,
        "best": {"round": 1, "score": 0.5},
        "roster": {
            "info": {"axis": ["T1"]},
            "sites": {name: {"databases": {"hospital": database}}},
            "held_out": {},
        },
        "history": [entry],
        "final": {},
        "events": [event],
    }


def test_a_page_has_its_tables_and_drawings() -> None:
    text = page(told("ash", "it is late"))
    assert text.startswith("<!doctype html>")
    assert text.count("<svg") == 3
    assert "<h1>Federated run ash</h1>" in text
    assert '<td class="number">65' not in text  # times are for people
    assert '<td class="number">1 min</td>' in text
    assert '<td class="long">it is late</td>' in text
    assert "<h2>Test cases</h2>" not in text  # nothing was tested yet
    assert "<p>Nothing.</p>" in page({**told("ash", ""), "events": []})


def test_what_sites_name_is_no_markup() -> None:
    text = page(told("<b>ash</b>", "<script>alert('x')</script>"))
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text
