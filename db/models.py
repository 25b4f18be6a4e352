"""The registry's tables.

run -> iteration -> stage -> checkpoint -> answer set -> answer
                                           answer set x judge = evaluation -> judgment -> score
plus costs, preference-set statistics and training curves. Unique constraints make every write idempotent;
money is integer micro-dollars; time is UTC; identities are sha256 hex of content, never paths.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from db.types import FiniteFloat, ModelText, Name, UTCDateTime

Identity = BigInteger().with_variant(Integer, "sqlite")


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    # Named constraints: a SQLite migration can only rewrite what it can name.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, datetime: UTCDateTime, float: FiniteFloat}


class Run(Base):
    """One `train-and-eval`: a recipe under a name."""

    __tablename__ = "run"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    name: Mapped[str] = mapped_column(Name(200), unique=True)
    recipe_name: Mapped[str] = mapped_column(Name(200))
    recipe: Mapped[dict[str, Any]]
    recipe_hash: Mapped[str] = mapped_column(Name(64))
    status: Mapped[str] = mapped_column(Name(20))
    """running | done | failed | stopped."""
    pid: Mapped[int | None]
    host: Mapped[str | None] = mapped_column(Name(200))
    heartbeat_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(ModelText)
    environment: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    best_checkpoint_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id", use_alter=True))
    best_rule: Mapped[str | None] = mapped_column(ModelText)


class Iteration(Base):
    """One turn of the online loop; index 0 stands for everything before the first."""

    __tablename__ = "iteration"
    __table_args__ = (UniqueConstraint("run_id", "index"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    index: Mapped[int]
    decisions: Mapped[list[Any]] = mapped_column(default=list)
    """What the hooks said: [{"hook", "action", "reason", "checkpoint"}]."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class StageRun(Base):
    """One stage of a run, over all its attempts."""

    __tablename__ = "stage"
    __table_args__ = (UniqueConstraint("run_id", "name"), Index(None, "key"))
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    iteration: Mapped[int | None]
    name: Mapped[str] = mapped_column(Name(200))
    """Unique in the run, e.g. `dpo[2]` or `answer[sft]`."""
    program: Mapped[str] = mapped_column(Name(100))
    key: Mapped[str] = mapped_column(Name(64))
    status: Mapped[str] = mapped_column(Name(20))
    """waiting | running | done | reused | failed."""
    attempts: Mapped[int] = mapped_column(default=0)
    pid: Mapped[int | None]
    host: Mapped[str | None] = mapped_column(Name(200))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    done: Mapped[int | None]
    total: Mapped[int | None]
    unit: Mapped[str | None] = mapped_column(Name(50))
    error: Mapped[str | None] = mapped_column(ModelText)
    artifact: Mapped[str | None] = mapped_column(ModelText)
    fingerprint: Mapped[str | None] = mapped_column(Name(64))
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    seconds: Mapped[float | None]
    peak_rss_bytes: Mapped[int | None] = mapped_column(BigInteger)
    log: Mapped[str | None] = mapped_column(ModelText)


class Checkpoint(Base):
    """Weights, by fingerprint. The same weights are one row however many runs or paths lead to them."""

    __tablename__ = "checkpoint"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Name(64), unique=True)
    name: Mapped[str] = mapped_column(Name(300))
    kind: Mapped[str] = mapped_column(Name(30))
    """base | sft | iteration | reward | gold_reward | preference | third_party | published | canary | calibration."""
    source: Mapped[str] = mapped_column(Name(20))
    """trained | imported | published."""
    path: Mapped[str | None] = mapped_column(ModelText)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id", ondelete="SET NULL"), index=True)
    iteration: Mapped[int | None]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"))
    reference_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"))
    stage_key: Mapped[str | None] = mapped_column(Name(64))
    provenance: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=now)
    parent: Mapped["Checkpoint | None"] = relationship(foreign_keys=[parent_id], remote_side=[id])


class RunCheckpoint(Base):
    """The part that a checkpoint plays in a run: base, sft, iteration t, reward, gold_reward."""

    __tablename__ = "run_checkpoint"
    __table_args__ = (UniqueConstraint("run_id", "role", "iteration"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    role: Mapped[str] = mapped_column(Name(30))
    iteration: Mapped[int] = mapped_column(default=0)
    checkpoint: Mapped[Checkpoint] = relationship()


class Judge(Base):
    """Who gave the verdicts. "No judge" and the sandbox are rows too: NULLs never collide in a unique key."""

    __tablename__ = "judge"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), unique=True)
    """Hash of kind, model or fingerprint, prompt and sampling."""
    name: Mapped[str] = mapped_column(Name(200))
    kind: Mapped[str] = mapped_column(Name(30))
    """openai | serve | reward_model | sandbox | none; published for rows of published leaderboards."""
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class AnswerSet(Base):
    """What one checkpoint answered to one benchmark under one set of decoding settings."""

    __tablename__ = "answer_set"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), unique=True)
    """Hash of checkpoint fingerprint, benchmark, version and settings."""
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    benchmark: Mapped[str] = mapped_column(Name(50))
    version: Mapped[str] = mapped_column(Name(100))
    """Data variant and revision, e.g. `starter@1a2b3c4d` or `v0.1@...`."""
    settings: Mapped[dict[str, Any]]
    settings_hash: Mapped[str] = mapped_column(Name(64))
    """Hash of settings without the checkpoint: rows that differ in it are never ranked together."""
    status: Mapped[str] = mapped_column(Name(20))
    """partial | complete."""
    n_questions: Mapped[int]
    mean_tokens: Mapped[float | None]
    """Mean output tokens of its answers, kept by `db.record.complete_answer_set`: the leaderboard cannot average
    millions of answers at each view."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    checkpoint: Mapped[Checkpoint] = relationship()


class Answer(Base):
    """One sampled answer (or, for likelihood benchmarks, the scored choices of one question)."""

    __tablename__ = "answer"
    __table_args__ = (UniqueConstraint("answer_set_id", "question_id", "turn", "sample"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    answer_set_id: Mapped[int] = mapped_column(ForeignKey("answer_set.id", ondelete="CASCADE"))
    question_id: Mapped[str] = mapped_column(Name(200))
    category: Mapped[str | None] = mapped_column(Name(100))
    """The question's part of the benchmark (MT-Bench's `math`, a subject of MMLU); None where it has none."""
    turn: Mapped[int] = mapped_column(default=1)
    sample: Mapped[int] = mapped_column(default=0)
    prompt: Mapped[str] = mapped_column(ModelText)
    """The rendered prompt, exactly as the engine got it."""
    text: Mapped[str] = mapped_column(ModelText)
    finish_reason: Mapped[str | None] = mapped_column(Name(20))
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Evaluation(Base):
    """One answer set under one judge: a cell of the leaderboard."""

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("answer_set_id", "judge_id"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), unique=True)
    """Hash of the answer set's key and the judge's key."""
    answer_set_id: Mapped[int] = mapped_column(ForeignKey("answer_set.id", ondelete="CASCADE"))
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))
    status: Mapped[str] = mapped_column(Name(20))
    """partial | complete."""
    flags: Mapped[list[Any]] = mapped_column(default=list)
    """Why a reader should doubt this cell: [{"flag", "reason"}], e.g. answers that look like a canary's."""
    statistics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What is no score: the judge's position and length preference here, categories, coefficients of a fit."""
    provenance: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Of imported ones: {"source", "files": [{"name", "sha256"}], "format"}; empty for what was measured here."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    answer_set: Mapped[AnswerSet] = relationship()
    judge: Mapped[Judge] = relationship()


class Judgment(Base):
    """One verdict on one answer; the raw response is kept, the verdict is derived from it."""

    __tablename__ = "judgment"
    __table_args__ = (UniqueConstraint("evaluation_id", "question_id", "turn", "sample", "game"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluation.id", ondelete="CASCADE"))
    question_id: Mapped[str] = mapped_column(Name(200))
    turn: Mapped[int] = mapped_column(default=1)
    sample: Mapped[int] = mapped_column(default=0)
    game: Mapped[int] = mapped_column(default=1)
    """1, or 2 for the game with positions swapped."""
    value: Mapped[float | None]
    """The verdict on the benchmark's own scale; None when the attempt failed."""
    error: Mapped[str | None] = mapped_column(ModelText)
    raw: Mapped[dict[str, Any]] = mapped_column(default=dict)
    shown: Mapped[str | None] = mapped_column(Name(64))
    """Key of the `Conversation` that the judge was shown: an endpoint's prompt, or what a reward model compared with."""
    tokens_in: Mapped[int] = mapped_column(default=0)
    tokens_out: Mapped[int] = mapped_column(default=0)
    micro_dollars: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Conversation(Base):
    """Messages that a judge was shown, once for all judgments that share them."""

    __tablename__ = "conversation"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), unique=True)
    """Hash of the messages (`core.fingerprint.digest`)."""
    messages: Mapped[list[Any]]
    """[{"role", "content"}]."""


class JudgeResponse(Base):
    """What a judge's endpoint replied to one request, kept the moment it arrives and never asked for again.

    Verdicts are derived from it; two evaluations that ask the same question of the same judge share it.
    """

    __tablename__ = "judge_response"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), unique=True)
    """Hash of endpoint, model, messages, sampling parameters and the index of the sample."""
    model: Mapped[str] = mapped_column(Name(200))
    """As asked for."""
    served_model: Mapped[str | None] = mapped_column(Name(200))
    """As the endpoint says that it answered with."""
    endpoint: Mapped[str] = mapped_column(Name(300))
    response: Mapped[dict[str, Any]]
    tokens_in: Mapped[int] = mapped_column(default=0)
    tokens_out: Mapped[int] = mapped_column(default=0)
    micro_dollars: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Calibration(Base):
    """How far a judge agrees with people and gold labels on one data set, both orders asked."""

    __tablename__ = "calibration"
    __table_args__ = (UniqueConstraint("judge_key", "dataset"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    judge_key: Mapped[str] = mapped_column(Name(64))
    """Hash of kind and model or fingerprint, whatever the benchmark's prompt."""
    judge_name: Mapped[str] = mapped_column(Name(200), index=True)
    judge_kind: Mapped[str] = mapped_column(Name(30))
    dataset: Mapped[str] = mapped_column(Name(100))
    version: Mapped[str] = mapped_column(Name(100))
    n: Mapped[int]
    n_failed: Mapped[int]
    statistics: Mapped[dict[str, Any]]
    """metric -> {"value", "low", "high", "n"}: agreement, kappa, flip rate, first-position preference, ..."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class Score(Base):
    """One metric of one evaluation, with its interval."""

    __tablename__ = "score"
    __table_args__ = (UniqueConstraint("evaluation_id", "metric"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluation.id", ondelete="CASCADE"))
    metric: Mapped[str] = mapped_column(Name(60))
    value: Mapped[float | None]
    """None when withheld (more than 1 % of the items failed)."""
    low: Mapped[float | None]
    high: Mapped[float | None]
    """95 % interval unless `method` says otherwise."""
    stderr: Mapped[float | None]
    """Standard error of `value` over what `method` resamples; the metric's own where the reference defines one."""
    method: Mapped[str] = mapped_column(ModelText)
    n: Mapped[int]
    n_failed: Mapped[int]
    worst: Mapped[float | None]
    best: Mapped[float | None]
    """The value if every failed item had gone as badly, or as well, as it could."""
    headline: Mapped[bool] = mapped_column(default=False)
    higher_is_better: Mapped[bool | None] = mapped_column(default=True)
    evaluation: Mapped[Evaluation] = relationship()


class Cost(Base):
    """What was spent, by stage (compute) or evaluation (tokens and money)."""

    __tablename__ = "cost"
    __table_args__ = (UniqueConstraint("scope", "scope_key", "kind"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    scope: Mapped[str] = mapped_column(Name(20))
    """stage | evaluation | run (what a run's judges were paid: a budget is over all its attempts)."""
    scope_key: Mapped[str] = mapped_column(Name(64))
    """Key of the stage or evaluation: a reused stage costs once."""
    kind: Mapped[str] = mapped_column(Name(20))
    """cpu_seconds | gpu_seconds | judge_tokens."""
    amount: Mapped[float]
    micro_dollars: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)


class PreferenceSet(Base):
    """Statistics of one iteration's preference pairs."""

    __tablename__ = "preference_set"
    __table_args__ = (UniqueConstraint("run_id", "iteration"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    iteration: Mapped[int]
    n_prompts: Mapped[int]
    n_pairs: Mapped[int]
    dropped: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """rule -> how many prompts gave no pair because of it."""
    reward_mean: Mapped[float | None]
    reward_chosen: Mapped[float | None]
    reward_rejected: Mapped[float | None]
    margin_mean: Mapped[float | None]
    tokens_mean: Mapped[float | None]
    tokens_chosen: Mapped[float | None]
    tokens_rejected: Mapped[float | None]
    statistics: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Curve(Base):
    """One point of a training curve."""

    __tablename__ = "curve"
    __table_args__ = (UniqueConstraint("stage_id", "metric", "step"),)
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    stage_id: Mapped[int] = mapped_column(ForeignKey("stage.id", ondelete="CASCADE"))
    metric: Mapped[str] = mapped_column(Name(60))
    step: Mapped[int]
    value: Mapped[float | None]
    """None where the value was not finite: a diverged loss is a point too."""
