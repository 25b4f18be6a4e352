"""A pairwise preference model at inference: P(one response is better than another), both orders averaged.

    model = PairwisePreferenceModel(checkpoint, max_length=3072)
    model.compare_responses([(messages, "Paris.", "Rome.")])[0].probability        # P(Paris. is the better response)
    model.rank([messages], [["Paris.", "Rome.", "I do not know."]])[0].scores      # a tournament, see train.tournament

The probability of a label is the softmax over the logits (float32) of the two labels' tokens at the last position of
the turn that `train.preference_prompt` renders. A model's template and tokenizer are tested when it is loaded: see
`train.preference_self_test`.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import HarnessError, RecipeError
from core.seeds import derive_seed
from train.batches import length_batches
from train.chat import Message, load_tokenizer
from train.loading import load_complete
from train.packed_linear import pack_linear_layers
from train.performance import Work, causal
from train.preference_prompt import encode, label_ids
from train.preference_self_test import require_known_pairs
from train.scorers import DTYPES, prepare_scoring
from train.tournament import TOURNAMENTS, Outcome, Ranking, play

if TYPE_CHECKING:
    from train.annotation_cache import RewardCache

Question = tuple[list[Message], str, str]
"""The conversation so far (ending with a user's message) and two responses to it."""


@dataclass(frozen=True)
class Comparison:
    """P(the first response is better), as judged with it shown first and with it shown second."""

    shown_first: float
    shown_second: float

    @property
    def probability(self) -> float:
        """Mean of both orders: a preference for a position cancels. 0.5 is a tie."""
        return (self.shown_first + self.shown_second) / 2

    @property
    def agree(self) -> bool:
        """Whether both orders prefer the same response (or neither prefers any)."""
        first, second = self.shown_first - 0.5, self.shown_second - 0.5
        return first * second > 0 or first == second == 0


class PairwisePreferenceModel:
    """A causal language model that answers A or B.

    `resources`: batch_tokens (padded tokens a forward pass), threads, self_test (default true).
    `truncated`: for each response of the last call, in order, whether it or its context had to be cut somewhere.
    `work`: what it computed so far. `cache` (a `train.annotation_cache.RewardCache`, with `identity`, see there) may be set:
    what it holds is not computed.
    Raises RecipeError for a tokenizer without single label tokens, HarnessError where the self-test fails.
    """

    def __init__(self, checkpoint: Path, *, max_length: int = 3072, dtype: str = "auto", resources: dict[str, Any] | None = None):
        from transformers import AutoModelForCausalLM

        resources = resources or {}
        self.device, self.batch_tokens = prepare_scoring(dtype, resources)
        self.max_length = max_length
        self.truncated: list[bool] = []
        self.cache: RewardCache | None = None
        self.identity = ""
        self.tokenizer = load_tokenizer(checkpoint)
        self.labels = label_ids(self.tokenizer)
        self.model = load_complete(AutoModelForCausalLM, checkpoint, DTYPES[dtype]).to(self.device)
        pack_linear_layers(self.model)
        self.work = Work()
        if resources.get("self_test", True):
            require_known_pairs(self, Path(checkpoint), DTYPES[dtype])

    def compare_responses(self, questions: list[Question]) -> list[Comparison]:
        """Each question's responses compared in both orders. Equal responses are a tie without being asked.

        Raises HarnessError for a probability that is not a number, RecipeError when `max_length` has no room for a turn.
        """
        asked = [q for q, (_, first, second) in enumerate(questions) if first != second]
        orders = [order for q in asked for order in (questions[q], (questions[q][0], questions[q][2], questions[q][1]))]
        encoded = [encode(self.tokenizer, *order, self.max_length) for order in orders]
        if any(turn is None for turn in encoded):
            raise RecipeError(f"max_length {self.max_length} has no room for the preference model's template; raise it.")
        turns = [turn for turn in encoded if turn is not None]
        first_label = self.first_label_probabilities([turn.ids for turn in turns])
        compared = [Comparison(0.5, 0.5)] * len(questions)
        cut = [False] * len(questions)
        for k, q in enumerate(asked):
            compared[q] = Comparison(first_label[2 * k], 1 - first_label[2 * k + 1])
            cut[q] = any(turn.context_cut for turn in turns[2 * k : 2 * k + 2])
        self.truncated = [c for c in cut for _ in range(2)]
        return compared

    def first_label_probabilities(self, rows: list[list[int]]) -> list[float]:
        """P(A) after each row of token ids, in the order given. Equal rows are computed once, those of the cache not at all.

        The ids of a turn say everything that the model is shown: template, context, both responses and their order.
        """
        keys = [tuple(ids) for ids in rows]
        known = self.cache.find(self.identity, dict.fromkeys(keys)) if self.cache else {}
        missing = [ids for ids in dict.fromkeys(keys) if ids not in known]
        if missing:
            fresh = dict(zip(missing, self._compute(missing), strict=True))
            if self.cache:
                self.cache.add(self.identity, fresh)
            known |= fresh
        return [known[ids] for ids in keys]

    def _compute(self, rows: list[tuple[int, ...]]) -> list[float]:
        """`first_label_probabilities` by forward passes; rows of similar length are padded and run together."""
        import torch

        pad = self.tokenizer.pad_token_id
        pad = 0 if pad is None else pad
        found, began = [0.0] * len(rows), time.perf_counter()
        for batch in length_batches([len(ids) for ids in rows], self.batch_tokens):
            width = max(len(rows[i]) for i in batch)
            # Padded at the left, so that the last position is every row's own and only its logits are computed.
            ids = torch.tensor([[pad] * (width - len(rows[i])) + list(rows[i]) for i in batch], device=self.device)
            mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch], device=self.device)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False
                ).logits
                labels = torch.log_softmax(logits[:, -1, list(self.labels)].float(), dim=-1)
            if not torch.isfinite(labels).all():
                raise HarnessError("The preference model gave a probability that is not a number; train or choose another one.")
            for i, p in zip(batch, labels[:, 0].exp().tolist(), strict=True):
                found[i] = p
        self.work.seconds += time.perf_counter() - began
        self.work.tokens += sum(map(len, rows))
        self.work.attended += causal(map(len, rows))
        return found

    def compare(self, pairs: list[tuple[list[Message], list[Message]]]) -> list[float]:
        """P(the first conversation's last message is better) for conversations that differ in that message alone.

        Raises RecipeError where they differ before it.
        """
        if any(first[:-1] != second[:-1] for first, second in pairs):
            raise RecipeError("A preference model compares two responses to one conversation; these follow different ones.")
        questions = [(first[:-1], first[-1]["content"], second[-1]["content"]) for first, second in pairs]
        return [comparison.probability for comparison in self.compare_responses(questions)]

    def rank(
        self, prompts: list[list[Message]], responses: list[list[str]], *, tournament: str = "round_robin", seed: int = 0
    ) -> list[Ranking]:
        """A tournament among the responses of each prompt; those of all prompts run together.

        `seed` shuffles who meets whom in a knockout, for each prompt by its own text. Raises RecipeError for an unknown
        tournament.
        """
        if tournament not in TOURNAMENTS:
            raise RecipeError(f"Tournament {tournament!r} is not known; use one of {', '.join(TOURNAMENTS)}.")
        seeds = [derive_seed(seed, "tournament", json.dumps(prompt, sort_keys=True)) for prompt in prompts]
        made = [TOURNAMENTS[tournament](len(texts), s) for texts, s in zip(responses, seeds, strict=True)]
        cut = [[False] * len(texts) for texts in responses]

        def judge(matches: list[tuple[int, int, int]]) -> list[Outcome]:
            compared = self.compare_responses([(prompts[t], responses[t][i], responses[t][j]) for t, i, j in matches])
            for k, (t, i, j) in enumerate(matches):
                cut[t][i] |= self.truncated[2 * k]
                cut[t][j] |= self.truncated[2 * k + 1]
            return [Outcome(c.probability, c.agree) for c in compared]

        rankings = play(made, judge)
        self.truncated = [was_cut for of_prompt in cut for was_cut in of_prompt]
        return rankings
