"""Sign-in where the server's owner has set one up: Streamlit's OpenID Connect, and a list of who may come in.

Configured in Streamlit's own secrets.toml (docs/dashboard.md): `[auth]` has the provider's keys; `[dashboard] allowed` the
addresses, or `@domain`, that may read the registry. Without `[auth]` the pages are open to whoever reaches the port.
"""

import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import HarnessError
from dashboard import markup


def secrets() -> dict[str, Any]:
    """What secrets.toml holds; {} where there is none."""
    return dict(st.secrets.to_dict()) if st.secrets.load_if_toml_exists() else {}


def stored_secrets() -> dict[str, Any]:
    """The same before the server runs: Streamlit's own reading would settle its options before ours are set.

    Raises HarnessError for a file that is no TOML.
    """
    found: dict[str, Any] = {}
    # Where Streamlit looks (option secrets.files); the folder's file comes last and wins.
    for path in (Path.home() / ".streamlit" / "secrets.toml", Path.cwd() / ".streamlit" / "secrets.toml"):
        if path.is_file():
            try:
                found |= tomllib.loads(path.read_text(encoding="utf-8"))
            except tomllib.TOMLDecodeError as error:
                raise HarnessError(f"{path} is no TOML ({error}); see docs/dashboard.md for its keys.") from error
    return found


def require_sign_in_can_work() -> bool:
    """Whether sign-in is set up. Raises HarnessError where it is, but could not work or would let everyone in."""
    found = stored_secrets()
    if "auth" not in found:
        return False
    if find_spec("authlib") is None:
        raise HarnessError("secrets.toml has [auth], which needs Authlib: pip install 'streamlit[auth]'.")
    if not found.get("dashboard", {}).get("allowed"):
        raise HarnessError('secrets.toml has [auth] but no [dashboard] allowed = ["@example.org"]: say who may come in.')
    return True


def may_enter() -> bool:
    """Whether this visitor may see the pages; shows the way in to one who may not yet."""
    found = secrets()
    if "auth" not in found:
        return True
    if not st.user.get("is_logged_in", False):
        st.title("RLHF leaderboard", anchor=False)
        st.html(markup.heading("Sign in to read this registry", "Its owner decides who may."))
        st.button("Sign in", on_click=st.login, type="primary", icon=":material/login:")
        return False
    address = str(st.user.get("email") or "")
    if not allowed(address, bool(st.user.get("email_verified", False)), found.get("dashboard", {}).get("allowed", [])):
        st.title("RLHF leaderboard", anchor=False)
        st.html(markup.heading("You may not read this registry", f"Ask its owner to admit {address or 'your account'}."))
        st.button("Sign out", on_click=st.logout)
        return False
    return True


def allowed(address: str, verified: bool, admitted: Sequence[str]) -> bool:
    """Whether an address is on the list, itself or by its `@domain`; one that its provider has not verified never is."""
    name, _, domain = address.casefold().rpartition("@")
    known = {one.casefold() for one in admitted}
    return bool(verified and name and domain) and (address.casefold() in known or f"@{domain}" in known)
