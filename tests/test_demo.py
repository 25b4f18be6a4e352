"""The bundled registry: opens at this version, holds a whole run, and names no machine."""

import gzip
import re

from dashboard.demo import BUNDLED, unpack
from db import views
from db.registry import Registry
from scripts.demo_registry import without_places


def test_the_bundled_registry_holds_a_whole_quickstart():
    with Registry.open(unpack(), readonly=True).read() as session:
        rows = views.leaderboard(session)
        assert [run.status for run in views.runs(session)] == ["done"]
    assert len([row for row in rows if row.kind == "iteration"]) == 2
    assert all(len(row.cells) >= 6 for row in rows)


def test_it_names_no_path_of_the_machine_that_made_it():
    content = gzip.decompress(BUNDLED.read_bytes())
    assert not re.search(rb'[" ](/tmp|/home|/root|/Users|/work)/', content)
    assert b'"host":' not in content


def test_places_are_taken_out_at_any_depth():
    given = {"host": "h", "a": {"host": "h", "b": ["/tmp/x", {"path": "/root/y", "n": 1}]}, "c": "/", "d": "a/b"}
    assert without_places(given) == {"a": {"b": [{"n": 1}]}, "d": "a/b"}
