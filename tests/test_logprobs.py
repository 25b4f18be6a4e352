"""Log-probabilities of given texts: shared prefixes change no number, engines agree, BOS tokens are counted."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import HarnessError, RecipeError
from evals.knowledge.logprobs import Likelihood, encode_pair, encode_text, leading_bos, make_likelihood
from evals.knowledge.transformers_logprobs import TransformersLikelihood

CONTEXTS = ["Q: What is a register?\nA:", "Q: What is a test?\nA: ", "Other words", "Q: What is a register?\nA:", "Q"]
CONTINUATIONS = [" one", " two three four five six", " no", " an answer that is a good deal longer than the others are"]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Likelihood:
    return make_likelihood("transformers", tiny_llama, resources={"choices": 3, "threads": 1})


@pytest.fixture(scope="module")
def with_bos(tiny_llama: Path):
    """The tiny tokenizer, made to write its BOS before every text, as Llama-3's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def plain_logprob(model: TransformersLikelihood, context: str, continuation: str) -> float:
    """One full forward pass over context and continuation, no cache, float64 softmax."""
    import torch

    context_ids, ids = encode_pair(model.tokenizer, context, continuation)
    with torch.no_grad():
        logits = model.model(torch.tensor([context_ids + ids])).logits[0].double().log_softmax(-1)
    return sum(logits[len(context_ids) - 1 + i, token].item() for i, token in enumerate(ids))


def test_shared_prefixes_and_batches_agree_with_plain_forward_passes(model: Likelihood):
    found = model.loglikelihoods([(context, CONTINUATIONS) for context in CONTEXTS])
    for context, scores in zip(CONTEXTS, found, strict=True):
        assert scores == pytest.approx([plain_logprob(model, context, c) for c in CONTINUATIONS], abs=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab \nQ:", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4))
def test_the_order_of_contexts_does_not_matter(model: Likelihood, contexts: list[str]):
    found = [model.loglikelihood(context, [" one", " two three"]) for context in contexts]
    for context, scores in zip(contexts, found, strict=True):
        assert scores == pytest.approx([plain_logprob(model, context, c) for c in (" one", " two three")], abs=1e-4)


def test_trailing_spaces_of_the_context_belong_to_the_continuation(model: Likelihood):
    tokenizer = model.tokenizer
    assert encode_pair(tokenizer, "Q: why?\nA: ", "so") == encode_pair(tokenizer, "Q: why?\nA:", " so")
    context, continuation = encode_pair(tokenizer, "Q: why?\nA:", " because of it")
    assert tokenizer.decode(context) == "Q: why?\nA:" and tokenizer.decode(continuation) == " because of it"


def test_a_context_that_does_not_fit_is_refused_not_cut_and_the_others_are_scored(model: Likelihood):
    long = "word " * model.max_length
    found = model.loglikelihoods([("A b", [" c"]), (long, [" end"]), ("D e", [" f", " g"])])
    assert found[1] is None and len(found[0]) == 1 and len(found[2]) == 2
    assert found[2] == pytest.approx([plain_logprob(model, "D e", c) for c in (" f", " g")], abs=1e-4)


def test_a_text_fits_until_its_last_token_is_the_first_beyond_the_context(model: TransformersLikelihood):
    """The last token is predicted, never read: a text of max_length + 1 tokens still fits."""
    import torch

    context, choice = [5, 6, 7] * (model.max_length // 3), [8, 9, 10, 11]
    context = (context + [5] * 3)[: model.max_length - 3]
    assert model._fits((context, [choice])) and not model._fits((context, [[8], [*choice, 12]]))
    ((score,),) = model.score_ids([(context, [choice])])
    with torch.no_grad():
        logits = model.model(torch.tensor([context + choice[:-1]])).logits[0].double().log_softmax(-1)
    assert score == pytest.approx(sum(logits[len(context) - 1 + i, t].item() for i, t in enumerate(choice)), abs=1e-4)


@pytest.mark.parametrize(("context", "continuations"), [("", [" a"]), ("a", []), ("a", [""])])
def test_nothing_cannot_be_scored(model: Likelihood, context: str, continuations: list[str]):
    with pytest.raises(ValueError, match="at least one token"):
        model.loglikelihood(context, continuations)


def test_one_bos_where_the_tokenizer_writes_one(with_bos):
    bos = with_bos.bos_token
    assert leading_bos(with_bos, encode_text(with_bos, "A text")) == 1
    # a chat template's text begins with it already
    assert leading_bos(with_bos, encode_text(with_bos, f"{bos}A text")) == 1
    context, continuation = encode_pair(with_bos, f"{bos}A text", " more")
    assert with_bos.bos_token_id not in continuation and context.count(with_bos.bos_token_id) == 1


def test_two_bos_or_a_missing_one_are_refused(with_bos, model: Likelihood):
    bos = with_bos.bos_token
    with pytest.raises(HarnessError, match="2 BOS"):
        leading_bos(with_bos, with_bos.encode(f"{bos}A text"))
    with pytest.raises(HarnessError, match="0 BOS"):
        leading_bos(with_bos, with_bos.encode("A text", add_special_tokens=False))
    assert leading_bos(model.tokenizer, model.tokenizer.encode("A text")) == 0


def test_the_check_guards_every_score(model: Likelihood):
    bos = model.tokenizer.bos_token
    with pytest.raises(HarnessError, match="2 BOS"):
        model.loglikelihood(f"{bos}{bos}A text", [" more"])


def test_an_unknown_engine_is_refused(tiny_llama: Path):
    with pytest.raises(RecipeError, match="transformers or vllm"):
        make_likelihood("sglang", tiny_llama)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_agrees_with_transformers(tiny_llama: Path, model: Likelihood, tmp_path: Path):
    """In a process of its own: vLLM changes its environment, and another test's engine may be alive."""
    import json
    import subprocess
    import sys

    requests = [[context, CONTINUATIONS] for context in CONTEXTS] + [["word " * 2000, [" end"]]]
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from evals.knowledge.logprobs import make_likelihood\n"
        "options = {'threads': 1, 'kv_cache_gib': 1, 'max_num_seqs': 8}\n"
        "model = make_likelihood('vllm', Path(sys.argv[1]), max_model_len=1024, resources=options)\n"
        "found = model.loglikelihoods(json.load(open(sys.argv[2])))\n"
        "json.dump(found, open(sys.argv[3], 'w'))\n"
        "model.close()\n"
    )
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    arguments = [str(tiny_llama), str(tmp_path / "requests.json"), str(tmp_path / "found.json")]
    root = Path(__file__).resolve().parent.parent
    finished = subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    expected = model.loglikelihoods(requests)
    assert found[-1] is None and expected[-1] is None
    for scores, wanted in zip(found[:-1], expected[:-1], strict=True):
        assert scores == pytest.approx(wanted, abs=1e-3)
