"""A mock for faults that no real endpoint gives on demand: an OpenAI-compatible server that follows a script.

    with ScriptedJudgeServer(script) as server:
        judge = OpenAIJudge({"base_url": server.url, ...})

`script(request, number) -> Reply`: `request` is the JSON body, `number` counts requests from 0.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """One HTTP reply. `body` a dict is sent as JSON, a str as it is."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def says(
    text: str,
    top_logprobs: dict[str, float] | None = None,
    tokens: tuple[int, int] = (100, 10),
    finish_reason: str = "stop",
    refusal: str | None = None,
    model: str = "scripted",
) -> Scripted:
    """A chat completion with that text, and log-probabilities for its first token where given."""
    logprobs = None
    if top_logprobs is not None:
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in top_logprobs.items()]
        logprobs = {
            "content": [{"token": text[:1], "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}],
            "refusal": None,
        }
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish_reason, "logprobs": logprobs, "message": message}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}
    return Scripted(body=body)


def billed(reply: Scripted) -> tuple[int, int]:
    """(prompt tokens, completion tokens) that the client can know of from a reply: none of one that came too late or cut."""
    usage = reply.body.get("usage") if isinstance(reply.body, dict) and reply.status == 200 and reply.delay < 0.5 else None
    return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else (0, 0)


def fails(
    status: int, message: str = "scripted failure", code: str | None = None, param: str | None = None, **headers: str
) -> Scripted:
    """An error in OpenAI's form."""
    error = {"error": {"message": message, "type": "scripted", "param": param, "code": code}}
    return Scripted(status, error, {name.replace("_", "-"): value for name, value in headers.items()})


class ScriptedJudgeServer:
    """Serves the script on a free local port; `requests` and `times` record what came, `busiest` how many at once.

    `models`: the reply to GET /models and /models/NAME; None for an endpoint without them.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Scripted], models: Scripted | None = None):
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.busiest = self._busy = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.times.append(time.monotonic())
                    outer.keys.add(self.headers["Authorization"])
                    outer._busy += 1
                    outer.busiest = max(outer.busiest, outer._busy)
                reply = script(request, number)
                time.sleep(reply.delay)
                with lock:
                    outer._busy -= 1
                self._send(reply)

            def do_GET(self) -> None:
                self._send(models or fails(404, "no such page"))

            def _send(self, reply: Scripted) -> None:
                data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
                self.send_response(reply.status)
                for name, value in (
                    {"Content-Type": "application/json", "Content-Length": str(len(data))} | reply.headers
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                # A client that no longer waits, or one that is promised more than it gets.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(data)
                if "Content-Length" in reply.headers:
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ScriptedJudgeServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._server.shutdown()
        self._server.server_close()
