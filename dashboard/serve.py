"""Start the dashboard: one process, bound to this machine, with a Content-Security-Policy on every response.

The policy lets the page reach nothing but its own server: even if some text of a model were rendered, it could neither
run a script nor fetch an image from elsewhere. Without sign-in (`dashboard.sign_in`) whoever reaches the port can read the
registry.
"""

import base64
import errno
import hashlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from core.errors import HarnessError
from dashboard import theme
from db.engine import registry_url

LOOPBACK = ("127.0.0.1", "localhost", "::1")
APP = Path(__file__).parent / "app.py"

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def main(db_url: str, port: int, host: str = "127.0.0.1") -> None:
    """Serve the registry at `db_url` until interrupted. Raises HarnessError for an unusable URL or port.

    A registry that is not there yet is no error: the page says which command makes it, and shows it once it exists.
    """
    require_port(host, port)
    os.environ["HARNESS_DB"] = registry_url(db_url).render_as_string(hide_password=False)
    import streamlit as st
    from starlette.middleware import Middleware

    shown = f"[{host}]" if ":" in host else host
    print(f"Dashboard: http://{shown}:{port}    (Ctrl+C ends it)", flush=True)
    from dashboard.sign_in import require_sign_in_can_work

    if not require_sign_in_can_work() and host not in LOOPBACK:
        print(f"Bound to {host}: there is no sign-in, so everyone who reaches this port can read the registry.", flush=True)
    policy = content_security_policy(inline_scripts(Path(st.__file__).parent / "static" / "index.html"))
    st.App(APP, middleware=[Middleware(SecurityHeaders, policy=policy)]).run(config=options(host, port))


def options(host: str, port: int) -> dict[str, Any]:
    """Streamlit's options: no usage statistics, no browser opened, no watching of files, our themes."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        # Refuses a page elsewhere whose host name was made to point here (DNS rebinding).
        "server.allowedHosts": ["127.0.0.1", "localhost", "[::1]", "::1"] if host in LOOPBACK else [],
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
        "client.showErrorLinks": False,
        # A string that stands by itself would be written onto the page.
        "runner.magicEnabled": False,
        "logger.hideWelcomeMessage": True,
    } | theme.options()


class SecurityHeaders:
    """ASGI middleware that sets the security headers of every HTTP response."""

    def __init__(self, app: Callable[..., Awaitable[None]], policy: str):
        self.app = app
        self.headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def content_security_policy(script_hashes: list[str]) -> str:
    """The policy: everything from this server only. Styles may be inline, since Streamlit's own are."""
    scripts = " ".join(["'self'", *script_hashes])
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self' blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def inline_scripts(page: Path) -> list[str]:
    """CSP hashes of the inline scripts of Streamlit's own page, so that only these may run."""
    scripts = re.findall(r"<script>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]


def require_port(host: str, port: int) -> None:
    """Raise HarnessError unless the port is free: Streamlit itself would end without a word on what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HarnessError(f"Port {port} of {host} is in use; give another with --port.") from error
            raise HarnessError(
                f"{host}:{port} cannot be bound ({error.strerror}); use --host 127.0.0.1 and a --port over 1023."
            ) from error
