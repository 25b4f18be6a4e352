"""What annotation has paid for once: rewards and comparisons by weights and token ids, and a judge's replies by what was asked.

One SQLite file beside the artifact store (HARNESS_HOME/cache/annotations.db), shared by all runs. The key of a reward (of a
comparison's probability in one order, of a log-probability) is a hash of scorer kind, checkpoint fingerprint, dtype,
max_length and the token ids of all that was read, so that it never answers for other weights, texts or templates. Any
number of processes may read and write: a row is written once, and whoever comes second writes nothing. SQLite's rollback
journal, not WAL: it also holds on network file systems that lock.
"""

import hashlib
import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import HarnessError
from core.fingerprint import digest

if TYPE_CHECKING:
    from evals.judges.cache import Charge, Place
    from evals.judges.endpoint import Completion

_TABLES = """
CREATE TABLE IF NOT EXISTS reward (key BLOB PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reply (key TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS charged (
    run TEXT, scorer TEXT, calls INTEGER, tokens INTEGER, micro_dollars INTEGER, PRIMARY KEY (run, scorer)
) WITHOUT ROWID;
"""
_BUSY_SECONDS = 120
_AT_ONCE = 500
"""Keys a query; SQLite's oldest limit on variables is 999."""


class AnnotationCache:
    """The file. Raises HarnessError when it cannot be read as one."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            connection.executescript(_TABLES)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of the calling thread's own; what is written on it is one transaction."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise HarnessError(
                f"The annotation cache {self.path} cannot be used ({error}); remove the file or mend its disk."
            ) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def rewards(self, keys: list[bytes]) -> dict[bytes, float]:
        """Those that are here."""
        found: dict[bytes, float] = {}
        with self._connected() as connection:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                found |= dict(connection.execute(f"SELECT key, value FROM reward WHERE key IN ({marks})", part))
        return found

    def add_rewards(self, rows: Iterable[tuple[bytes, float]]) -> None:
        with self.writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO reward VALUES (?, ?)", rows)


class RewardCache:
    """The rewards in an `AnnotationCache`, by token ids; `hits` and `misses` count since it was made."""

    def __init__(self, cache: AnnotationCache):
        self.cache, self.hits, self.misses = cache, 0, 0

    def find(self, identity: str, rows: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        """Token ids -> reward of the rows that were scored before under this identity."""
        keys = {reward_key(identity, ids): ids for ids in rows}
        found = {keys[key]: reward for key, reward in self.cache.rewards(list(keys)).items()}
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def add(self, identity: str, rewards: Mapping[tuple[int, ...], float]) -> None:
        self.cache.add_rewards([(reward_key(identity, ids), reward) for ids, reward in rewards.items()])


def reward_identity(kind: str, fingerprint: str, dtype: str, max_length: int, **more: Any) -> str:
    """What besides the tokens decides a reward."""
    return digest({"kind": kind, "fingerprint": fingerprint, "dtype": dtype, "max_length": max_length} | more)


def reward_key(identity: str, ids: tuple[int, ...]) -> bytes:
    """sha256 of identity and ids (as little-endian int32)."""
    return hashlib.sha256(identity.encode() + array("i", ids).tobytes()).digest()


class ReplyStore:
    """A judge's replies and what they cost (`evals.judges.cache.Replies`): kept and charged in one transaction.

    `scorer` says on whose behalf the run pays: a stage's key and a name in it, so that a stage which was killed and
    resumed still knows what all its attempts have spent.
    """

    def __init__(self, cache: AnnotationCache, run: str, scorer: str):
        self.cache, self.run, self.scorer = cache, run, scorer

    def find(self, key: str) -> dict[str, Any] | None:
        with self.cache._connected() as connection:
            row = connection.execute("SELECT body FROM reply WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def buy(self, place: "Place", cost: "Charge", key: str | None = None, completion: "Completion | None" = None) -> None:
        charge = (self.run, self.scorer, 1, cost.tokens_in + cost.tokens_out, cost.micro_dollars)
        with self.cache.writing() as connection:
            if completion is not None:
                connection.execute("INSERT OR IGNORE INTO reply VALUES (?, ?)", (key, json.dumps(completion.body)))
            connection.execute(
                "INSERT INTO charged VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, scorer) DO UPDATE SET calls = calls + 1, "
                "tokens = tokens + excluded.tokens, micro_dollars = micro_dollars + excluded.micro_dollars",
                charge,
            )

    def spent_by_run(self) -> int:
        """Micro-dollars of this run so far, all scorers together."""
        with self.cache._connected() as connection:
            query = "SELECT COALESCE(SUM(micro_dollars), 0) FROM charged WHERE run = ?"
            return connection.execute(query, (self.run,)).fetchone()[0]

    def spent(self) -> tuple[int, int, int]:
        """(calls, tokens, micro-dollars) of this scorer so far, all attempts together."""
        with self.cache._connected() as connection:
            query = "SELECT calls, tokens, micro_dollars FROM charged WHERE run = ? AND scorer = ?"
            row = connection.execute(query, (self.run, self.scorer)).fetchone()
        return row or (0, 0, 0)
