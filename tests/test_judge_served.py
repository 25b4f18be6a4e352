"""A checkpoint of one's own as judge, behind vLLM's real server: half-way killed, resumed, nothing asked twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from core.errors import JudgeError
from core.stage import Spec, Stage
from db.models import Judge, JudgeResponse, Judgment
from evals.judges import server as judge_server
from evals.judges.openai_judge import ServedJudge
from evals.judges.server import JudgeServer, server_command
from tests.conftest import ROOT
from tests.judge_stage import JudgeStage, entry

ASKED = "POST /v1/chat/completions"


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


def test_the_judge_is_its_weights_and_how_it_is_served(tmp_path):
    from evals.chat.alpaca_eval import AlpacaEval

    def made(fingerprint="f" * 64, **settings):
        judge = ServedJudge(tmp_path / "smol", fingerprint, settings, {}, tmp_path)
        return judge.name, judge.fingerprint, judge.config(AlpacaEval(), {})

    assert made()[0] == "serve:smol-ffffffff"
    assert made()[2]["endpoint"] == "vllm"
    assert made() == made(concurrency=3, requests_per_minute=7, max_usd=None)

    def asked(**settings):
        return ServedJudge(tmp_path / "smol", "f" * 64, settings, {}, tmp_path).asked

    # Replies are kept under what they were asked of: served otherwise, the same weights say other things.
    assert asked() == asked(dtype="auto") == "vllm" and len({asked(), asked(dtype="float32"), asked(max_model_len=512)}) == 3
    assert made() != made("e" * 64) and made() != made(dtype="float32") and made() != made(max_model_len=512)


def test_the_models_own_sampling_never_judges(tmp_path):
    command = server_command(tmp_path, "name", 1234, {"max_model_len": 512}, {"tensor_parallel": 2})
    pairs = list(zip(command, command[1:], strict=False))
    assert ("--generation-config", "vllm") in pairs and ("--host", "127.0.0.1") in pairs
    assert ("--max-model-len", "512") in pairs and ("--tensor-parallel-size", "2") in pairs


def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch):
    """The guard and the health check with another command: vLLM takes half a minute to fail."""
    failing = [sys.executable, "-c", "raise ValueError('no such architecture')"]
    monkeypatch.setattr(judge_server, "server_command", lambda *arguments: failing)
    monkeypatch.setattr(judge_server, "find_spec", lambda name: True)
    with pytest.raises(JudgeError, match="no such architecture.*judge-server.log"):
        JudgeServer(tmp_path / "model", "name", tmp_path / "judge-server.log", {}, {}).__enter__()


# Stands for vLLM: a process that starts another one which nobody but the process group reaches, and answers /health.
STAND_IN = """
import subprocess, sys, http.server
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STAGE = """
import sys, time
from pathlib import Path
from evals.judges import server as judge_server
judge_server.find_spec = lambda name: True
program, note, log = sys.argv[1:]
judge_server.server_command = lambda m, n, port, s, r: [sys.executable, "-c", program, str(port), note]
server = judge_server.JudgeServer(Path("model"), "name", Path(log), {}, {})
with server as url:
    print(url, flush=True)
    time.sleep(600 if sys.stdin.readline() == "stay\\n" else 0)
"""


@pytest.mark.parametrize("end", ["in order", signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_running_however_the_stage_ends(tmp_path, end):
    note = tmp_path / "pid"
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, STAND_IN, str(note), str(tmp_path / "log")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stage.stdout.readline().startswith("http://127.0.0.1:")
    child = int(note.read_text())
    assert _alive(child)
    stage.stdin.write("go\n" if end == "in order" else "stay\n")
    stage.stdin.flush()
    if end != "in order":
        stage.send_signal(end)
    stage.wait(timeout=30)
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_real_server_judges_two_benchmarks_and_is_asked_nothing_twice(bench, registry, converted_smollm2, data):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    judge = {"kind": "serve", "max_model_len": 4096, "max_tokens": 48, "concurrency": 2, "dtype": "auto"}
    entries = (entry("alpaca_eval", limit=6), entry("mt_bench", limit=3))
    inputs = {
        "judge": converted_smollm2.file("checkpoint"),
        "data/mt_bench/judge_prompts": data / "mt_bench" / "judge_prompts.jsonl",
    }
    bench.stage(judge, *entries, inputs=inputs)
    spec = bench.spec(judge, *entries, inputs=inputs, resources={"threads": 1})
    log = Stage(Spec.load(spec)).work / "judge-server.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    process = subprocess.Popen(
        [sys.executable, "-m", "evals.judged", str(spec)], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while _asked(log) < 7 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()[-4000:]
    process.kill()
    process.wait()
    first = _asked(log)
    with registry.read() as session:
        kept = session.scalar(select(func.count()).select_from(JudgeResponse))
    assert 0 < kept <= first < 1 + 6 + 6

    process = subprocess.Popen(
        [sys.executable, "-m", "evals.judged", str(spec)], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    copy, began = log.with_name("copy.log"), time.time()
    while process.poll() is None:  # the log goes with the stage's success; another name for it does not
        if not copy.exists() and log.exists() and log.stat().st_mtime > began:
            os.link(log, copy)
        time.sleep(0.05)
    stderr = process.stderr.read().decode()
    sealed = Spec.load(spec)
    folder = Stage(sealed).store.path(sealed.stage, sealed.key)
    assert process.returncode == 0, stderr[-4000:]
    second = _asked(next(folder.glob("copy.log"), copy))
    with registry.read() as session:
        replies = session.scalar(select(func.count()).select_from(JudgeResponse))
        rows = session.scalars(select(Judgment)).all()
        names = {row.kind: row.name for row in session.scalars(select(Judge))}
    # A reply asked for twice would be kept once: every request of the second server was for something new.
    assert replies == kept + second and second >= 1 + 6 + 6 - kept
    assert first - kept <= 2  # what was under way at the kill
    assert len(rows) == 6 + 6 and all(j.value is not None or j.raw["rule"] in ("unreadable", "empty reply") for j in rows)
    assert any(j.value is not None for j in rows)
    assert names["serve"].startswith("serve:checkpoint-") and sum(j.micro_dollars for j in rows) == 0
    assert json.loads((folder / "manifest.json").read_text())["metrics"]["calls"] == second


def _asked(log: Path) -> int:
    """Requests that the server itself says it answered or began to answer."""
    return log.read_text(errors="replace").count(ASKED) if log.exists() else 0
