"""Near-duplicate prompts: the data stage's index against comparing every prompt with every other one.

    HARNESS_DATA=... python -m benchmarks.near_duplicates [--prompts 4000]

The public prompts of the mirror, and of every fourth a copy in which words were replaced (seeded), so that similarities from 0.5
to 1 occur. The peer is the rule itself, exact, all pairs, with the shingle sets made beforehand. Claims: of the pairs at or above
0.8 at least 99.9 % end in one group; no two prompts are joined that no chain of such pairs joins; at least 10 times as fast at
4,000 prompts (the peer grows with the square, the index does not).
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from itertools import combinations
from pathlib import Path

from train.filters import words
from train.near_duplicates import SHINGLE, PromptIndex
from train.readers import READERS

THRESHOLD = 0.8
FILES = {
    "code_alpaca": ["prompts/codealpaca_new_codealpaca.json.gz", "prompts/codealpaca_2k.json.gz"],
    "alpaca": ["prompts/alpaca_en_demo.json.gz"],
    "self_instruct_seed": ["prompts/self_instruct_seed_tasks.jsonl.gz"],
}


def public_prompts(mirror: Path, count: int) -> list[str]:
    """`count` different prompts of at least 20 words; every fifth is a changed copy of an earlier one."""
    generator = random.Random(0)
    rows = [row for reader, files in FILES.items() for row in READERS[reader]([mirror / file for file in files])]
    texts = list(dict.fromkeys(row["messages"][0]["content"] for row in rows))
    made: list[str] = []
    for text in (text for text in texts if len(words(text)) >= 20):
        made.append(text)
        if len(made) % 5 == 4:
            tokens = generator.choice(made).split()
            for _ in range(generator.randint(1, max(1, len(tokens) // 25))):
                tokens[generator.randrange(len(tokens))] = f"changed{generator.randrange(1000)}"
            made.append(" ".join(tokens))
    return list(dict.fromkeys(made))[:count]


def all_pairs(texts: list[str]) -> tuple[list[tuple[int, int]], float]:
    """(every pair at or above the threshold, seconds of comparing): exact."""
    tokens = [words(text) for text in texts]
    sets = [{tuple(t[i : i + SHINGLE]) for i in range(max(1, len(t) - SHINGLE + 1))} for t in tokens]
    began = time.perf_counter()
    found = []
    for one, other in combinations(range(len(sets)), 2):
        a, b = sets[one], sets[other]
        # No pair whose sizes differ by more can reach the threshold.
        if min(len(a), len(b)) >= THRESHOLD * max(len(a), len(b)):
            shared = len(a & b)
            if shared >= THRESHOLD * (len(a) + len(b) - shared):
                found.append((one, other))
    return found, time.perf_counter() - began


def components(pairs: list[tuple[int, int]], count: int) -> list[int]:
    """The smallest member of each text's connected component."""
    parents = list(range(count))

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [root(number) for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    given = parser.parse_args()
    mirror = os.environ.get("HARNESS_DATA")
    if not mirror:
        sys.exit("HARNESS_DATA is not set: it names the mirror of public data whose prompts are compared.")
    texts = public_prompts(Path(mirror), given.prompts)
    index = PromptIndex(THRESHOLD)
    index.group(index.add("The first one pays for imports and tables of hash functions."))
    began = time.perf_counter()
    index = PromptIndex(THRESHOLD)
    numbers = [index.add(text) for text in texts]
    groups = [index.group(number) for number in numbers]
    ours = time.perf_counter() - began
    pairs, peer = all_pairs(texts)
    exact = components(pairs, len(texts))
    joined = sum(groups[one] == groups[other] for one, other in pairs)
    first: dict[int, int] = {}
    wrong = sum(exact[first.setdefault(group, place)] != exact[place] for place, group in enumerate(groups))
    figures = {
        "prompts": len(texts),
        "pairs": len(pairs),
        "recall": joined / len(pairs),
        "wrongly_joined": wrong,
        "seconds": round(ours, 2),
        "seconds_all_pairs": round(peer, 2),
        "ratio": round(peer / ours, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    if given.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<18} {value}")
    held = figures["recall"] >= 0.999 and not wrong and figures["ratio"] >= 10
    print(f"claims hold        {held}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
