"""The store's guarantee: a directory without `.partial` is whole, and bytes that changed are never used."""

import json
from pathlib import Path

import pytest

from core.artifacts import Store, read_rows, write_durably, write_rows
from core.errors import MissingInput
from core.fingerprint import checkpoint_fingerprint, digest

MANIFEST = {"stage": "s", "version": 1, "settings": {}, "inputs": {}}


def _seal(store: Store, key: str, files: dict[str, str]):
    partial = store.partial("s", key)
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
    return store.commit(partial, store.path("s", key), MANIFEST | {"key": key})


def test_found_only_when_committed_and_verified(store: Path) -> None:
    shelf, key = Store(store), digest("a")
    shelf.partial("s", key).mkdir()
    assert shelf.find("s", key) is None
    sealed = _seal(shelf, key, {"a.txt": "one", "sub/b.txt": "two"})
    found = shelf.find("s", key)
    assert found is not None and found.fingerprint == sealed.fingerprint
    assert set(found.manifest["files"]) == {"a.txt", "sub/b.txt"}
    assert not shelf.partial("s", key).exists()


def test_changed_bytes_are_set_aside(store: Path) -> None:
    shelf, key = Store(store), digest("a")
    sealed = _seal(shelf, key, {"a.txt": "one"})
    (sealed.path / "a.txt").write_text("two")
    assert shelf.find("s", key) is None
    assert len(list(store.glob("*.corrupt-*"))) == 1


def test_fingerprint_is_of_content_not_of_place(store: Path) -> None:
    shelf = Store(store)
    one, two, three = (_seal(shelf, digest(n), {"a": text}) for n, text in ((1, "x"), (2, "x"), (3, "y")))
    assert one.fingerprint == two.fingerprint != three.fingerprint


def test_second_commit_of_a_key_keeps_the_first(store: Path) -> None:
    shelf, key = Store(store), digest("a")
    first = _seal(shelf, key, {"a": "x"})
    assert _seal(shelf, key, {"a": "y"}).fingerprint == first.fingerprint
    assert (shelf.path("s", key) / "a").read_text() == "x"


def test_rows_survive_any_text(tmp_path: Path) -> None:
    rows = [{"text": "line\nbreak \u2028 é \U0001f600", "n": 1.5}, {"text": ""}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, "old")
    monkeypatch.setattr("os.fsync", _failing_fsync)
    with pytest.raises(OSError, match="fault injected"):
        write_durably(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def _failing_fsync(descriptor: int) -> None:
    raise OSError(5, "fault injected")


def test_checkpoint_fingerprint_follows_weights_and_template(tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed"
    copy.mkdir()
    for file in tiny_llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert checkpoint_fingerprint(copy) == checkpoint_fingerprint(tiny_llama)
    (copy / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
    assert checkpoint_fingerprint(copy) == checkpoint_fingerprint(tiny_llama)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert checkpoint_fingerprint(copy) != checkpoint_fingerprint(tiny_llama)


def test_stop_tokens_count_where_only_the_generation_config_names_them(tiny_llama: Path, tmp_path: Path) -> None:
    """`train.chat.turn_end_ids` stops at the ids of both files."""
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain, end = checkpoint_fingerprint(tiny_llama), json.loads((tmp_path / "config.json").read_text())["eos_token_id"]

    def with_ids(ids: object) -> str:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "temperature": 0.3}))
        return checkpoint_fingerprint(tmp_path)

    (tmp_path / "generation_config.json").unlink()
    assert checkpoint_fingerprint(tmp_path) == plain
    assert {with_ids(end), with_ids([end]), with_ids(None), with_ids([])} == {plain}
    more = with_ids([end, end + 1])
    assert more != plain and more == with_ids([end + 1, end]) != with_ids([end, end + 2])
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(MissingInput, match="generation_config.json is not a JSON object"):
        checkpoint_fingerprint(tmp_path)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no config.json"):
        checkpoint_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingInput, match="no weights"):
        checkpoint_fingerprint(tmp_path)
