"""Log-probabilities of responses under a policy, from token ids.

The same truncation is used for the cached reference and for DPO: both call `truncated_pair`, so a cached number always
belongs to the tokens it is subtracted from.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS = 256
"""Positions whose softmax over the vocabulary is held in float32 at once: twice 131 MB for 128,256 tokens."""


def truncated_pair(row: dict[str, Any], max_length: int) -> tuple[list[int], list[int], list[int]] | str:
    """Prompt, chosen and rejected ids of a pair, each sequence cut at its end to `max_length` tokens, or why it is dropped.

    Reasons: `prompt_too_long` (no room for a response), `empty_response`, `equal_after_truncation`.
    """
    prompt = row["prompt_token_ids"]
    room = max_length - len(prompt)
    if room < 1:
        return "prompt_too_long"
    chosen, rejected = row["chosen"]["token_ids"][:room], row["rejected"]["token_ids"][:room]
    if not chosen or not rejected:
        return "empty_response"
    if chosen == rejected:
        return "equal_after_truncation"
    return prompt, chosen, rejected


def response_logprobs(model: Any, prompts: list[list[int]], responses: list[list[int]]) -> "Tensor":
    """Summed log-probability (nats, float32, shape [n]) of each response given its prompt; no gradient.

    `model`: a causal language model in eval mode. Sequences are right-padded; the softmax is taken in float32, of a few
    positions at a time: that of all would be larger than the logits.
    """
    import torch

    device = next(model.parameters()).device
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for k, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        n = len(prompt) + len(response)
        input_ids[k, :n] = torch.tensor(prompt + response)
        mask[k, :n] = 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    sums = []
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        for k, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            # The logits at position t predict token t + 1.
            begin, end = len(prompt) - 1, len(prompt) + len(response) - 1
            found = []
            for start in range(begin, end, _POSITIONS):
                stop = min(start + _POSITIONS, end)
                log_softmax = torch.log_softmax(logits[k, start:stop].float(), dim=-1)
                found.append(log_softmax.gather(1, input_ids[k, start + 1 : stop + 1, None]))
            sums.append(torch.cat(found).sum())
    return torch.stack(sums).cpu()
