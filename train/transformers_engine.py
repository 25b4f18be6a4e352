"""The transformers engine: left-padded batches, a KV cache and our own sampling loop.

It runs wherever torch does. `model.generate` is not used because it draws a whole batch from one generator, so that
a sample would depend on its neighbours; here every request draws from its own.
"""

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.chat import load_tokenizer, turn_end_ids
from train.engines import Completion, Request, Sampling, check_fits, complete, resolve_dtype
from train.loading import load_complete

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """One `AutoModelForCausalLM` on the first GPU, or on the CPU."""

    def __init__(self, checkpoint: Path, max_model_len: int, dtype: str, resources: dict[str, Any]):
        import torch
        from transformers import AutoModelForCausalLM

        if "threads" in resources:
            torch.set_num_threads(resources["threads"])
        self.max_model_len = max_model_len
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = resources.get("batch_size", 128 if self.device.type == "cuda" else 32)
        self.tokenizer = load_tokenizer(checkpoint)
        self.stop_ids = turn_end_ids(self.tokenizer, checkpoint)
        weights = resolve_dtype(dtype, checkpoint, self.device.type == "cuda")
        self.model = load_complete(AutoModelForCausalLM, checkpoint, weights).to(self.device)

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Answers in the order of the requests. Raises RecipeError when one cannot fit `max_model_len`."""
        check_fits(requests, self.max_model_len)
        # Neighbours of like length waste the least padding; the index makes the order total.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][0]), -requests[i][1].max_tokens, i))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            completions.update(zip(batch, self._generate_batch([requests[i] for i in batch]), strict=True))
        return [completions[i] for i in range(len(requests))]

    def stream(self, batches: Iterable[tuple[int, list[Request]]]) -> Iterator[tuple[int, list[Completion]]]:
        """See `train.engines.Engine`: one batch after the other."""
        for number, requests in batches:
            yield number, self.generate(requests)

    def close(self) -> None:
        import torch

        del self.model
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _generate_batch(self, requests: list[Request]) -> list[Completion]:
        import torch

        samplings = [sampling for _, sampling in requests]
        uniforms = draw_uniforms(samplings).to(self.device)
        temperature = torch.tensor([s.temperature for s in samplings], device=self.device)
        top_p = torch.tensor([s.top_p for s in samplings], device=self.device)
        input_ids, attention_mask = left_pad([ids for ids, _ in requests], self.tokenizer.pad_token_id or 0)
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        generated: list[list[int]] = [[] for _ in requests]
        stopped = [False] * len(requests)
        rows = torch.arange(len(requests), device=self.device)  # which request each row of the batch serves
        alive = list(range(len(requests)))  # the same on the host, without those that have ended
        cache = None
        with torch.inference_mode():
            for step in range(uniforms.shape[1]):
                output = self.model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                tokens = sample_tokens(output.logits[:, -1].float(), temperature[rows], top_p[rows], uniforms[rows, step])
                by_request = dict(zip(rows.tolist(), tokens.tolist(), strict=True))
                for request in alive:
                    generated[request].append(by_request[request])
                    stopped[request] = self._ends(generated[request], samplings[request])
                alive = [r for r in alive if not stopped[r] and len(generated[r]) < samplings[r].max_tokens]
                if not alive:
                    break
                input_ids, position_ids = tokens[:, None], position_ids[:, -1:] + 1
                attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], dim=1)
                if len(alive) <= len(rows) // 2:
                    # Rows of answers that have ended cost as much as the others: drop them once they are half.
                    wanted = set(alive)
                    keep = torch.tensor([i for i, r in enumerate(rows.tolist()) if r in wanted], device=self.device)
                    cache.batch_select_indices(keep)
                    rows, input_ids, position_ids = rows[keep], input_ids[keep], position_ids[keep]
                    attention_mask = attention_mask[keep]
        return [complete(self.tokenizer, *row) for row in zip(generated, samplings, stopped, strict=True)]

    def _ends(self, token_ids: list[int], sampling: Sampling) -> bool:
        if token_ids[-1] in self.stop_ids:
            return True
        if not sampling.stop:
            return False
        # A stop string of n bytes lies within the last n tokens, since no token is empty.
        longest = max(len(stop.encode()) for stop in sampling.stop)
        tail = self.tokenizer.decode(token_ids[-longest - 4 :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(stop in tail for stop in sampling.stop)


def draw_uniforms(samplings: list[Sampling]) -> "torch.Tensor":
    """float64 [batch, longest max_tokens] on the CPU, row i from its own seed: the same numbers on every device."""
    import torch

    table = torch.zeros(len(samplings), max(s.max_tokens for s in samplings), dtype=torch.float64)
    for row, sampling in zip(table, samplings, strict=True):
        generator = torch.Generator().manual_seed(sampling.seed)
        row[: sampling.max_tokens] = torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)
    return table


def left_pad(prompts: list[list[int]], pad: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Token ids and attention mask, both int64 [batch, longest prompt]."""
    import torch

    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


def sample_tokens(
    logits: "torch.Tensor", temperature: "torch.Tensor", top_p: "torch.Tensor", uniforms: "torch.Tensor"
) -> "torch.Tensor":
    """One token a row by inverting the cumulative distribution at the row's uniform number.

    logits float [batch, vocabulary]; temperature, top_p, uniforms [batch]. Temperature 0 takes the argmax; top_p keeps
    the smallest set of most likely tokens whose probability reaches top_p. Returns int64 [batch]. Each row's result
    depends on that row alone.
    """
    import torch

    tokens = logits.argmax(-1)
    sampled = temperature > 0
    for nucleus in (False, True):
        chosen = (sampled & ((top_p < 1) == nucleus)).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        probabilities = torch.softmax(logits[chosen].double() / temperature[chosen, None].double(), dim=-1)
        order = None
        if nucleus:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(-1) - probabilities
            probabilities = torch.where(before < top_p[chosen, None], probabilities, 0.0)
        cumulative = probabilities.cumsum(-1)
        threshold = uniforms[chosen, None] * cumulative[:, -1:]
        position = torch.searchsorted(cumulative, threshold, right=True)
        # u * total may round to total itself: the last token that has any probability is meant then.
        last = (probabilities > 0).long().cumsum(-1).argmax(-1, keepdim=True)
        position = torch.minimum(position, last)
        tokens[chosen] = (position if order is None else order.gather(-1, position))[:, 0]
    return tokens
