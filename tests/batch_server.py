"""A mock of OpenAI's /files and /batches, which no local server offers: real HTTP, real multipart, scripted completions.

    with BatchServer(script) as server: OpenAIJudge({"base_url": server.url, "transport": "batch", ...})

`script(request body) -> Scripted`, as in tests.scripted_judge. A batch ends at its `looks`-th retrieval.
"""

import email.parser
import email.policy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.scripted_judge import Scripted


class BatchServer:
    """`batches` holds what was submitted, `submitted` every request body of every batch, `paths` all that was asked."""

    def __init__(self, script: Callable[[dict[str, Any]], Scripted], looks: int = 1, status: str = "completed"):
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.looks, self.status, self.script = looks, status, script
        self.on_create: Callable[[], None] = lambda: None
        """Called after a batch is made and before the client is told."""
        outer, self._lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                outer.paths.append(f"POST {self.path}")
                if self.path == "/v1/files":
                    self._json(outer._file(_uploaded(self.headers["Content-Type"], data)))
                elif self.path == "/v1/batches":
                    batch = outer._create(json.loads(data))
                    outer.on_create()
                    self._json(batch)
                else:
                    reply = outer.script(json.loads(data))
                    self._json(reply.body, reply.status)

            def do_GET(self) -> None:
                outer.paths.append(f"GET {self.path.split('?')[0]}")
                parts = self.path.split("?")[0].split("/")[2:]
                if parts[0] == "files":
                    self._send(outer.files[parts[1]].encode())
                elif len(parts) == 1:
                    rows = list(outer.batches.values())
                    self._json({"object": "list", "data": [_shown(b) for b in reversed(rows)], "has_more": False})
                else:
                    self._json(outer._retrieve(parts[1]))

            def _json(self, body: Any, status: int = 200) -> None:
                self._send(json.dumps(body).encode(), status)

            def _send(self, data: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "BatchServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _file(self, text: str) -> dict[str, Any]:
        with self._lock:
            name = f"file-{len(self.files)}"
            self.files[name] = text
        return {"id": name, "object": "file", "bytes": len(text), "created_at": 0, "filename": "x", "purpose": "batch"}

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            lines = [json.loads(line) for line in self.files[asked["input_file_id"]].split("\n") if line]
            self.submitted += [line["body"] for line in lines]
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name,
                "object": "batch",
                "endpoint": asked["endpoint"],
                "input_file_id": asked["input_file_id"],
                "completion_window": asked["completion_window"],
                "metadata": asked["metadata"],
                "created_at": 0,
                "status": "in_progress",
                "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
                "_lines": lines,
                "_looks": 0,
            }
            return _shown(self.batches[name])

    def _retrieve(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["_looks"] += 1
        if batch["_looks"] >= self.looks and batch["status"] == "in_progress":
            batch["status"] = self.status
            if self.status == "completed":
                self._end(batch)
            elif self.status == "failed":
                batch["errors"] = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "too many tokens"}]}
        return _shown(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in batch["_lines"]:
            reply = self.script(line["body"])
            response = {"status_code": reply.status, "request_id": "r", "body": reply.body}
            row = {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}
            (good if reply.status == 200 else bad).append(json.dumps(row))
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[name] = self._file("\n".join(rows) + "\n")["id"]


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("_")}


def _uploaded(content_type: str, data: bytes) -> str:
    """The file part of a multipart form."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    form = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + data)
    part = next(p for p in form.iter_parts() if p.get_param("name", header="content-disposition") == "file")
    return part.get_payload(decode=True).decode()
