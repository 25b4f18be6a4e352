"""The data layer: what the catalogue promises holds for the bytes, wherever they come from."""

import gzip
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from core.errors import HashMismatch, MissingInput, RecipeError
from evals.benchmark import files_of, get_benchmark
from harness.catalogue import PACKAGE, load_catalogue
from harness.data import benchmark_files, content_sha256, fetch, locate, status, verify
from harness.hub_data import read_lock
from harness.recipe import Evaluate
from harness.resolve import resolve_benchmarks
from harness.transforms import alpaca_eval_rows, compress, tulu_rows
from tests.file_server import FileServer

ROWS = b'{"id": "1", "messages": [{"role": "user", "content": "What is a lighthouse for?"}]}\n'


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HARNESS_HOME and no mirror."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server():
    opened = FileServer()
    yield opened
    opened.close()


@pytest.fixture
def add_entry(home: Path):
    """`add_entry(name, **fields)`: an entry in the user's own catalogue."""

    def add(name: str, **fields) -> None:
        path = home / "catalogue.yaml"
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
        base = {"kind": "prompts", "reader": "jsonl", "licence": "CC0-1.0", "source": "a test"}
        path.write_text(yaml.safe_dump(content | {name: base | fields}))

    return add


def lighthouse(server: FileServer, **changes) -> dict:
    """Files of an entry that the server serves rightly, changed as asked."""
    server.files["/rows.jsonl"] = ROWS
    upstream = {"url": f"{server.url}/rows.jsonl", "sha256": sha(ROWS), "transform": "gzip"}
    return {"path": "prompts/rows.jsonl.gz", "sha256": sha(ROWS), "upstream": upstream | changes}


# --- what ships -------------------------------------------------------------------------------------------------------


def test_everything_that_ships_verifies(home: Path) -> None:
    for name, entry in load_catalogue().items():
        if entry.packaged:
            assert [located.sha256 for located in locate(name)] == [file.sha256 for file in entry.files], name


def test_every_starter_file_is_in_the_catalogue(starter: Path) -> None:
    listed = {file.path for entry in load_catalogue().values() if entry.packaged for file in entry.files}
    there = {p.relative_to(PACKAGE).as_posix() for p in starter.rglob("*.json*") if p.is_file()}
    assert listed == there


def test_readers_of_the_catalogue_exist() -> None:
    from train.readers import READERS

    named = {entry.reader for entry in load_catalogue().values() if entry.reader}
    assert named <= set(READERS)


def test_assets_are_those_that_the_benchmarks_ask_for() -> None:
    from evals.benchmark import BENCHMARKS

    entries = {(e.benchmark, e.variant): [f.asset for f in e.files] for e in load_catalogue().values() if e.kind == "questions"}
    for (name, variant), assets in entries.items():
        benchmark = BENCHMARKS[name]
        asked = benchmark.assets[variant]
        assert assets[0] == asked[0], "the questions come first"
        assert set(asked) <= set(assets) <= set(asked) | set(benchmark.optional_assets.get(variant, ())), (name, variant)


def test_upstream_urls_are_pinned_to_commits() -> None:
    for entry in load_catalogue().values():
        for file in entry.files:
            if file.upstream:
                parts = file.upstream.url.split("/")
                assert any(len(part) == 40 and set(part) <= set("0123456789abcdef") for part in parts), file.upstream.url


# --- finding and verifying --------------------------------------------------------------------------------------------


def test_the_mirror_verifies(data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))
    rows = verify()
    assert {row["state"] for row in rows} == {"ok"}
    listed = {row["file"] for row in rows}
    for entry in load_catalogue().values():
        for file in entry.files:
            if not entry.packaged and not file.optional:
                assert str(data / file.path) in listed, f"{entry.name} lacks {file.path} in the mirror"


def test_official_questions_are_located_in_the_mirror(data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.benchmark import BENCHMARKS

    monkeypatch.setenv("HARNESS_DATA", str(data))
    sizes = {"alpaca_eval": 805, "arena_hard": 500, "mt_bench": 80, "human_eval": 164, "truthful_qa": 817}
    for name, size in sizes.items():
        files = {asset: located.path for asset, located in benchmark_files(name, "official").items()}
        assert len(BENCHMARKS[name].load(files)) == size


def test_reconstructed_files_are_marked(data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))
    files = benchmark_files("alpaca_eval", "official")
    assert files["gamed"].stand_in and files["difficulty"].stand_in and not files["questions"].stand_in


def test_a_file_compressed_elsewhere_is_the_same_file(home: Path, add_entry, tmp_path: Path, monkeypatch) -> None:
    add_entry("lighthouse", files=[{"path": "rows.jsonl.gz", "sha256": sha(ROWS)}])
    hashes = set()
    for level in (1, 9):
        mirror = tmp_path / f"mirror-{level}"
        mirror.mkdir()
        (mirror / "rows.jsonl.gz").write_bytes(gzip.compress(ROWS, level, mtime=level))
        monkeypatch.setenv("HARNESS_DATA", str(mirror))
        hashes.add(locate("lighthouse")[0].sha256)
    assert hashes == {sha(ROWS)}


def test_a_wrong_byte_is_refused_with_both_hashes_and_the_fix(home: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "mt_bench").mkdir(parents=True)
    for name in ("question.jsonl", "reference_answer_gpt-4.jsonl", "judge_prompts.jsonl"):
        shutil.copy(data / "mt_bench" / name, mirror / "mt_bench" / name)
    monkeypatch.setenv("HARNESS_DATA", str(mirror))
    assert len(locate("mt_bench")) == 3
    changed = mirror / "mt_bench" / "question.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"Hawaii", b"Hawaij", 1))
    expected = load_catalogue()["mt_bench"].files[0].sha256
    with pytest.raises(HashMismatch, match="unset HARNESS_DATA") as refused:
        locate("mt_bench")
    assert expected in str(refused.value) and content_sha256(changed) in str(refused.value) and str(changed) in str(refused.value)
    assert {row["state"] for row in verify(["mt_bench"])} == {"ok", "differs"}


def test_a_cut_gzip_file_is_refused(home: Path, add_entry) -> None:
    add_entry("lighthouse", files=[{"path": "rows.jsonl.gz", "sha256": sha(ROWS)}])
    (home / "data").mkdir()
    (home / "data" / "rows.jsonl.gz").write_bytes(compress(ROWS)[:-12])
    with pytest.raises(HashMismatch, match="not a whole gzip file"):
        locate("lighthouse")
    assert verify(["lighthouse"])[0]["state"] == "differs"


_HUMAN_EVAL = ("HumanEval", "HumanEvalPlus")


def test_what_is_missing_names_the_command(home: Path) -> None:
    with pytest.raises(MissingInput, match="run `harness data fetch human_eval`, or set HARNESS_DATA"):
        locate("human_eval")
    with pytest.raises(MissingInput, match="harness data fetch preference_700k"):
        locate("preference_700k")
    with pytest.raises(MissingInput, match="no single download gives it.*Set HARNESS_DATA"):
        locate("alpaca_eval_pairs")
    with pytest.raises(MissingInput, match="did you mean hh_rlhf_harmless_test"):
        locate("hh_rlhf_harmles_test")
    with pytest.raises(RecipeError, match="set variant to"):
        benchmark_files("mt_bench", "weekly")
    missing = [{"name": "human_eval", "file": f"human_eval/{file}.jsonl.gz", "state": "missing"} for file in _HUMAN_EVAL]
    assert verify(["human_eval"]) == missing


def test_status_says_where_each_set_is(home: Path, add_entry) -> None:
    add_entry("lighthouse", files=[{"path": "rows.jsonl", "sha256": sha(ROWS)}])
    (home / "data").mkdir()
    (home / "data" / "rows.jsonl").write_bytes(ROWS)
    rows = {row["name"]: row for row in status()}
    assert rows["lighthouse"] | {"found": "cache", "size": len(ROWS), "kind": "prompts"} == rows["lighthouse"]
    assert rows["starter_prompts"]["found"] == "package" and rows["starter_prompts"]["size"] > 10_000
    assert rows["human_eval"]["found"] == "missing" and rows["human_eval"]["size"] is None


def test_a_local_file_in_standard_form_is_a_data_set(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(ROWS)
    assert locate(str(path))[0].sha256 == sha(ROWS)
    with pytest.raises(MissingInput, match="correct the path"):
        locate(str(tmp_path / "absent.jsonl"))


def test_a_catalogue_that_does_not_validate_is_refused(home: Path, add_entry) -> None:
    add_entry("starter_prompts", files=[{"path": "rows.jsonl", "sha256": sha(ROWS)}])
    with pytest.raises(RecipeError, match="redefines starter_prompts"):
        load_catalogue()
    for fault in ({"path": "../outside", "sha256": sha(ROWS)}, {"path": "rows", "sha256": "short"}, {"path": "rows", "md5": "x"}):
        (home / "catalogue.yaml").unlink(missing_ok=True)
        add_entry("lighthouse", files=[fault])
        with pytest.raises(RecipeError, match="is not a catalogue"):
            load_catalogue()


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_fetch_downloads_verifies_and_compresses(home: Path, server: FileServer, add_entry) -> None:
    add_entry("lighthouse", files=[lighthouse(server)])
    said: list[str] = []
    fetch(["lighthouse"], said.append)
    assert gzip.decompress((home / "data/prompts/rows.jsonl.gz").read_bytes()) == ROWS
    assert locate("lighthouse")[0].path == home / "data/prompts/rows.jsonl.gz"
    fetch(["lighthouse"], said.append)
    assert server.paths() == ["/rows.jsonl"], "what is here is not downloaded again"
    assert said[-1].endswith("is here and verified")


def test_other_bytes_are_refused_and_deleted(home: Path, server: FileServer, add_entry) -> None:
    add_entry("lighthouse", files=[lighthouse(server)])
    server.files["/rows.jsonl"] = ROWS.replace(b"lighthouse", b"lightbulb")
    with pytest.raises(HashMismatch, match="was deleted") as refused:
        fetch(["lighthouse"], print)
    assert sha(ROWS) in str(refused.value) and sha(server.files["/rows.jsonl"]) in str(refused.value)
    assert not [p for p in (home / "data").rglob("*") if p.is_file()]


def test_a_transform_that_gives_other_content_is_refused(home: Path, server: FileServer, add_entry) -> None:
    listed = json.dumps([{"instruction": "Name a colour.", "output": "Blue."}]).encode()
    fields = lighthouse(server, sha256=sha(listed), transform="alpaca_eval_rows")
    server.files["/rows.jsonl"] = listed
    add_entry("lighthouse", files=[fields])
    with pytest.raises(HashMismatch, match="after alpaca_eval_rows"):
        fetch(["lighthouse"], print)
    assert not [p for p in (home / "data").rglob("*") if p.is_file()]


def test_a_download_that_ends_early_is_refused(home: Path, server: FileServer, add_entry) -> None:
    add_entry("lighthouse", files=[lighthouse(server)])
    server.promised["/rows.jsonl"] = len(ROWS) + 10
    with pytest.raises(MissingInput, match="run the same command again"):
        fetch(["lighthouse"], print)
    assert not [p for p in (home / "data").rglob("*") if p.is_file()]


def test_what_cannot_be_reached_names_the_ways_out(home: Path, server: FileServer, add_entry) -> None:
    add_entry("gone", files=[lighthouse(server, url=f"{server.url}/gone")])
    with pytest.raises(MissingInput, match="HTTP 404.*set HARNESS_DATA"):
        fetch(["gone"], print)
    closed = FileServer()
    closed.close()
    add_entry("refused", files=[lighthouse(server, url=f"{closed.url}/rows")])
    with pytest.raises(MissingInput, match="check the network"):
        fetch(["refused"], print)


def test_a_damaged_cached_file_is_fetched_again(home: Path, server: FileServer, add_entry) -> None:
    add_entry("lighthouse", files=[lighthouse(server)])
    fetch(["lighthouse"], print)
    (home / "data/prompts/rows.jsonl.gz").write_bytes(compress(ROWS + ROWS))
    with pytest.raises(HashMismatch, match="harness data fetch lighthouse"):
        locate("lighthouse")
    fetch(["lighthouse"], print)
    assert locate("lighthouse")[0].sha256 == sha(ROWS)


def test_an_optional_file_that_cannot_be_had_stops_nothing(home: Path, server: FileServer, add_entry) -> None:
    optional = lighthouse(server, url=f"{server.url}/gone") | {"path": "prompts/more.jsonl", "optional": True}
    add_entry("lighthouse", files=[lighthouse(server), optional])
    said: list[str] = []
    fetch(["lighthouse"], said.append)
    assert "optional and stays missing" in said[-1]
    assert len(locate("lighthouse")) == 1


def test_the_alpaca_eval_transform_gives_the_mirrors_bytes(data: Path) -> None:
    """Upstream is a JSON list of the same rows without `index`."""
    content = gzip.decompress((data / "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz").read_bytes())
    rows = [json.loads(line) for line in content.decode().split("\n") if line]
    listed = [{key: value for key, value in row.items() if key != "index"} for row in rows]
    assert gzip.decompress(alpaca_eval_rows(json.dumps(listed).encode())) == content


def test_the_tulu_transform_reads_a_spreadsheet() -> None:
    """Shared and plain cells, columns that are not wanted, a spreadsheet error, an empty row."""
    wanted = ["id", "instance_index", "instance_id", "prompt", "model_a", "model_b", "completion_a", "completion_b"]
    wanted += ["completion_a_is_acceptable", "completion_b_is_acceptable", "preference", "comment", "evaluator"]
    row = ["7.0", "0.0", "task_1", "Say hé.", "a", "b", "Hé.", "#N/A", "yes", "no", "a-is-better", "unwanted", "me"]
    strings, lines = [], []
    for cells in (wanted, row):
        found = []
        for column, text in zip("ABCDEFGHIJKLM", cells, strict=True):
            if text.endswith(".0"):
                found.append(f'<c r="{column}1"><v>{text}</v></c>')
            else:
                found.append(f'<c r="{column}1" t="s"><v>{len(strings)}</v></c>')
                strings.append(text)
        lines.append("".join(found))
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    workbook = io.BytesIO()
    with zipfile.ZipFile(workbook, "w") as archive:
        shared = "".join(f"<si><r><t>{text[:2]}</t></r><r><t>{text[2:]}</t></r></si>" for text in strings)
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
        rows = "".join(f"<row>{line}</row>" for line in [*lines, '<c r="A3"/>'])
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{rows}</sheetData></worksheet>")
    [line] = gzip.decompress(tulu_rows(workbook.getvalue())).decode().splitlines()
    assert line.startswith('{"id": 7, "instance_index": 0, "instance_id": "task_1", "prompt": "Say hé."')
    assert '"completion_b": NaN' in line and "unwanted" not in line and line.endswith('"evaluator": "me"}')


# --- hub data sets: trust on first use --------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(server: FileServer, add_entry, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A server that answers as the hub does for one data set of two files, and an entry for it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    siblings = []
    for name, content in (("data/train-0.parquet", b"PAR1 one"), ("data/train-1.parquet", b"PAR1 two")):
        lfs = {"size": len(content), "sha256": sha(content), "pointerSize": 130}
        siblings.append({"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs})
        server.files[f"/datasets/org/pairs/resolve/{COMMIT}/{name}"] = content
    siblings.append({"rfilename": "README.md", "size": 3, "blobId": "1" * 40})
    describe(server, siblings)
    hub = {"id": "org/pairs", "revision": None, "files": "*.parquet"}
    add_entry("pairs", kind="preferences", reader="jsonl", hub=hub)
    return server


def describe(server: FileServer, siblings: list[dict], commit: str = COMMIT) -> None:
    body = json.dumps({"id": "org/pairs", "sha": commit, "siblings": siblings}).encode()
    for path in ("/api/datasets/org/pairs", "/api/datasets/org/pairs/revision/main"):
        server.files[path], server.headers[path] = body, {"Content-Type": "application/json"}


def test_the_first_fetch_of_a_hub_set_records_what_later_ones_must_be(home: Path, hub: FileServer) -> None:
    with pytest.raises(MissingInput, match="harness data fetch pairs"):
        locate("pairs")
    fetch(["pairs"], print)
    assert read_lock()["pairs"]["revision"] == COMMIT
    assert [located.sha256 for located in locate("pairs")] == [sha(b"PAR1 one"), sha(b"PAR1 two")]
    assert not any("README" in path for path in hub.paths())
    # main moves: the recorded commit stays
    describe(hub, [], "f" * 40)
    (home / "data/hub/pairs/data/train-1.parquet").unlink()
    fetch(["pairs"], print)
    assert len(locate("pairs")) == 2 and read_lock()["pairs"]["revision"] == COMMIT
    # the same commit with other bytes is refused
    (home / "data/hub/pairs/data/train-1.parquet").unlink()
    hub.files[f"/datasets/org/pairs/resolve/{COMMIT}/data/train-1.parquet"] = b"PAR1 2wo"
    with pytest.raises(HashMismatch):
        fetch(["pairs"], print)


def test_a_file_that_is_not_what_the_hub_says_is_never_recorded(home: Path, hub: FileServer) -> None:
    hub.files[f"/datasets/org/pairs/resolve/{COMMIT}/data/train-0.parquet"] = b"PAR1 0ne"
    with pytest.raises(HashMismatch):
        fetch(["pairs"], print)
    assert read_lock() == {}


def test_the_hub_token_is_not_sent_where_a_file_is_redirected_to(home: Path, hub: FileServer) -> None:
    storage = FileServer()
    try:
        path = f"/datasets/org/pairs/resolve/{COMMIT}/data/train-0.parquet"
        storage.files["/blob"] = hub.files[path]
        hub.files[path], hub.headers[path] = b"", {"Location": f"{storage.url}/blob"}
        hub.statuses[path] = 302
        fetch(["pairs"], print)
        asked = [headers for _, where, headers in hub.requests if where == path]
        assert asked[0]["Authorization"] == "Bearer hf_test"
        assert "Authorization" not in storage.requests[0][2]
    finally:
        storage.close()


def test_a_hub_that_cannot_be_asked_is_one_sentence(home: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub.files["/api/datasets/org/pairs"]
    with pytest.raises(MissingInput, match="could not be asked for org/pairs"):
        fetch(["pairs"], print)
    describe(hub, [{"rfilename": "../../evil.parquet", "size": 1, "blobId": "0" * 40}])
    with pytest.raises(MissingInput, match="no usable files"):
        fetch(["pairs"], print)
    hub.close()
    with pytest.raises(MissingInput, match="unset HF_HUB_OFFLINE"):
        fetch(["pairs"], print)


def test_a_variant_with_a_baseline_of_one_s_own_is_named_in_the_version(home: Path, add_entry) -> None:
    rows = [{"instruction": f"Question {i}", "output": f"An answer {i}", "generator": "my-baseline"} for i in range(3)]
    (home / "data").mkdir(exist_ok=True)
    content = json.dumps(rows).encode()
    (home / "data" / "mine.json").write_bytes(content)
    files = [{"asset": "questions", "path": "mine.json", "sha256": sha(content)}]
    add_entry("mine_alpaca_eval", kind="questions", benchmark="alpaca_eval", variant="against-mine", files=files)
    given = {"name": "alpaca_eval", "variant": "against-mine"}
    (found,) = resolve_benchmarks(Evaluate.model_validate({"benchmarks": [given]}))
    assert found.settings["version"].startswith("against-mine@")
    inputs = {f"data/alpaca_eval/{asset}": Path(ref.path) for asset, ref in found.files.items()}
    benchmark = get_benchmark("alpaca_eval")
    questions = benchmark.load(files_of(benchmark, "against-mine", inputs))
    assert [q.data["generator"] for q in questions] == ["my-baseline"] * 3
    with pytest.raises(RecipeError, match="set variant to .*against-mine"):
        benchmark_files("alpaca_eval", "another")
