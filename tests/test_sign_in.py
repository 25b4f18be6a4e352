"""Sign-in: nothing of the registry is shown before it, and only those on the list come in."""

import sys
from pathlib import Path

import pytest

from core.errors import HarnessError
from dashboard import sign_in
from db.registry import Registry
from tests.sample_registry import fill
from tests.test_dashboard import APP, shown, words

AUTH = {"redirect_uri": "http://localhost:8501/oauth2callback", "cookie_secret": "c" * 32, "client_id": "id"}


@pytest.mark.parametrize("page", ["leaderboard", "samples", "health"])
def test_before_signing_in_no_page_shows_anything(registry: Registry, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed")
    fill(registry)
    monkeypatch.setenv("HARNESS_DB", registry.url)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest leaves the page's script there
    test = testing.AppTest.from_file(APP, default_timeout=60)
    test.secrets["auth"] = AUTH
    test.secrets["dashboard"] = {"allowed": ["@example.org"]}
    test.run()
    if page != "leaderboard":
        test.switch_page(f"screens/{page}.py").run()
    assert not test.exception, test.exception
    assert "Sign in to read this registry" in words(shown(test))
    assert "quickstart" not in shown(test) and [button.label for button in test.button] == ["Sign in"]
    assert not test.code and not test.selectbox


@pytest.mark.parametrize(
    ("address", "verified", "expected"),
    [
        ("ada@example.org", True, True),
        ("ADA@Example.ORG", True, True),
        ("grace@lab.test", True, True),
        ("eve@lab.test", True, False),
        ("ada@example.org", False, False),
        ("ada@example.org.evil.test", True, False),
        ("@example.org", True, False),
        ("example.org", True, False),
        ("", True, False),
    ],
)
def test_who_is_on_the_list(address: str, verified: bool, expected: bool) -> None:
    assert sign_in.allowed(address, verified, ["@example.org", "grace@lab.test"]) is expected


def test_a_sign_in_that_cannot_work_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert sign_in.require_sign_in_can_work() is False
    file = tmp_path / ".streamlit" / "secrets.toml"
    file.parent.mkdir()
    file.write_text("[auth]\nclient_id = 'id'\n")
    monkeypatch.setattr(sign_in, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"streamlit\[auth\]"):
        sign_in.require_sign_in_can_work()
    monkeypatch.setattr(sign_in, "find_spec", lambda name: object())
    with pytest.raises(HarnessError, match="say who may come in"):
        sign_in.require_sign_in_can_work()
    file.write_text("[auth]\nclient_id = 'id'\n[dashboard]\nallowed = ['@example.org']\n")
    assert sign_in.require_sign_in_can_work() is True
    file.write_text("[auth\n")
    with pytest.raises(HarnessError, match="is no TOML"):
        sign_in.require_sign_in_can_work()
