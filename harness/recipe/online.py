"""Keys of `generate`, `annotate` and `pairs`: from a policy to its preference pairs."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.recipe.evaluation import Endpoint, Price
from harness.recipe.sections import Fraction, Model, NonNegative, Positive, Section
from train.annotators import JUDGE, kind_of
from train.rules import find_rule


class Arm(Section):
    n: Positive
    """Samples per prompt."""
    temperature: NonNegative = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    policy: Literal["current", "previous", "initial"] = "current"
    """Who answers: the policy of this iteration, the one that it was trained from, or pi_0. Policies run in turn, one loaded at a
    time; in iteration 1 all three are pi_0."""


class Generate(Section):
    engine: Literal["vllm", "transformers"] = "vllm"
    prompts_per_iteration: Positive
    arms: list[Arm] = Field(min_length=1)
    max_tokens: Positive = 2048
    max_model_len: Positive = 4096
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    system_prompt: str | None = None
    shard_size: Positive = 512
    """Prompts per shard: what a crash can cost."""
    threads: Positive | None = None
    """CPU threads of an engine; its share of the cores unless set."""
    processes: Positive = 1
    """Engines that share the shards out, each on tensor_parallel GPUs of its own; no answer depends on their number."""
    tensor_parallel: Positive = 1
    """GPUs that one vLLM engine is split over."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    max_num_seqs: Positive | None = None
    """Answers that a vLLM engine writes at once; None is vLLM's own choice (128 on a CPU)."""

    @model_validator(mode="after")
    def _possible(self) -> "Generate":
        if sum(arm.n for arm in self.arms) < 2:
            raise ValueError("the arms draw fewer than 2 samples a prompt; a pair needs two")
        if self.max_tokens >= self.max_model_len:
            raise ValueError("max_tokens leaves no room for the prompt; make it smaller than max_model_len")
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError("only vLLM splits a model over GPUs; set engine: vllm, or tensor_parallel: 1 and more processes")
        return self


class AnnotationJudge(Section):
    """An LLM behind an OpenAI-compatible endpoint, for `annotate.scorer: judge`. Its replies are kept: none is paid for twice."""

    model: str
    """Model name at the endpoint."""
    mode: Literal["grade", "compare"] = "grade"
    """Each answer gets a grade from 1 to 10; or answers are compared two at a time, in both orders (annotate.tournament)."""
    base_url: str | None = None
    """Of the service (default: OpenAI's); part of what identifies the judge."""
    endpoints: list[Endpoint] = []
    """Replicas that share the calls."""
    criteria: str | None = None
    """What the judge shall look at, as the words after "Judge ..."; None is helpfulness, truth and clarity."""
    temperature: NonNegative | Literal["omit"] | None = None
    """0 unless set; `omit` for models that take none."""
    max_tokens: Positive = 1024
    """Of a reply: reasons and verdict."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; "" for a service without keys."""
    concurrency: Positive = 16
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_tokens_name: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    price: Price | None = None
    """None takes it from HARNESS_HOME/prices.yaml or the shipped table."""
    max_usd: NonNegative | None = None
    """Dollars that the run may spend on annotation, over all iterations and attempts; needs a price."""


class Member(Section):
    """One scorer of an ensemble."""

    scorer: str
    """As annotate.scorer."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """In annotations and statistics; the scorer's own, numbered where there are several, unless set."""
    checkpoint: Model | None = None
    """A reward or preference model to use as it is; None is the run's own of that kind."""
    options: dict[str, Any] = {}
    """As annotate.options."""


class Ensemble(Section):
    """Several scorers, each standardised over the iteration's samples (mean 0, standard deviation 1) and combined."""

    scorers: list[Member] = Field(min_length=2)
    """Names of scorers, or sections with scorer, name, checkpoint, options."""
    combine: Literal["mean", "worst", "lower_confidence"] = "mean"
    """Of the members' standardised rewards: the mean, the lowest, or mean - 1 standard deviation (arXiv 2310.02743)."""
    max_disagreement: Fraction | None = None
    """Pairs whose rejected answer is put first by a larger share of the members are dropped; 0 asks for unanimity."""

    @field_validator("scorers", mode="before")
    @classmethod
    def _names_are_members(cls, given: Any) -> Any:
        return [{"scorer": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _distinct(self) -> "Ensemble":
        named = [member.name for member in self.scorers if member.name]
        if len(set(named)) < len(named):
            raise ValueError("two scorers of the ensemble have one name; give each its own")
        return self


class Annotate(Section):
    scorer: str = "bradley_terry"
    """bradley_terry (the run's reward model), pairwise (its preference model), judge (an LLM), a rule (exact_answer,
    numeric_answer, length_bounds, format), or one that a package declares (`harness.scorers`, `harness.rules`)."""
    options: dict[str, Any] = {}
    """Of a rule: length_bounds takes least and most (characters), format a pattern, numeric_answer a tolerance."""
    ensemble: Ensemble | None = None
    """Several scorers instead of one."""
    judge: AnnotationJudge | None = None
    tournament: Literal["round_robin", "knockout"] = "round_robin"
    """What a scorer that compares does, each comparison in both orders: every two of a prompt's K answers, K (K - 1) / 2; or
    about 1.5 K of them, winners against winners and losers against losers (INPO, arXiv 2407.00617; 11 for K = 8)."""
    max_length: Positive = 4096
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto is float32 on every machine. bfloat16 is what the paper's code scores in: several times faster on a GPU, with rewards
    about 0.1 away."""
    batch_tokens: Positive | None = None
    """Padded tokens of a scorer's forward pass; None is 65536 on a GPU (16384 in float32) and 1024 on a CPU, which gains nothing
    from more rows."""
    processes: Positive = 1
    """Processes that share the shards out, each with a scorer on a GPU of its own; no reward depends on their number."""

    @model_validator(mode="after")
    def _scorers_are_known(self) -> "Annotate":
        if self.ensemble is not None and ("scorer" in self.model_fields_set or self.options):
            raise ValueError("ensemble names its scorers itself; leave scorer and options of annotate out")
        kinds = [kind_of(member.scorer) for member in self.members]
        for member, kind in zip(self.members, kinds, strict=True):
            if kind == "rule":
                find_rule(member.scorer, member.options)
            elif member.options:
                raise ValueError(f"the scorer {member.scorer} takes no options; remove them")
            if kind != "scorer" and member.checkpoint is not None:
                raise ValueError(f"the scorer {member.scorer} has no checkpoint; remove it")
        if (JUDGE in {member.scorer for member in self.members}) != (self.judge is not None):
            raise ValueError("scorer judge needs the section annotate.judge, and no other uses it; set both or neither")
        return self

    @property
    def members(self) -> list[Member]:
        """The scorers, one or several, each with a name of its own."""
        given = self.ensemble.scorers if self.ensemble else [Member(scorer=self.scorer, options=self.options)]
        named = {member.name for member in given if member.name}
        members = []
        for member in given:
            name, number = member.name or member.scorer, 2
            while not member.name and name in named:
                name, number = f"{member.scorer}-{number}", number + 1
            named.add(name)
            members.append(member.model_copy(update={"name": name}))
        return members

    @property
    def sections(self) -> set[str]:
        """Sections of the recipe whose model scores: reward, preference."""
        own = {"bradley_terry": "reward", "pairwise": "preference"}
        return {own[member.scorer] for member in self.members if member.scorer in own and member.checkpoint is None}


class Pairs(Section):
    rule: Literal["max_min", "max_random", "max_low_sigma", "top_k", "all_margin", "tournament"] = "max_min"
    """Best against: worst; a random one of the rest; the one just below mean - 2 sigma. top_k: i-th best against i-th worst.
    all_margin: every two answers that differ by min_margin. tournament: winner and loser of annotate.tournament knockout."""
    k: Positive | None = None
    """Pairs a prompt that top_k makes at most; for that rule only."""
    length_penalty: NonNegative | Literal["auto"] = 0.0
    """Subtracted from the reward per unit of length before ranking (paper Eq. 9: 0.001 per character); auto: what makes
    chosen and rejected answers equally long on average, written to the statistics: 0 where the chosen ones are not longer."""
    length_unit: Literal["characters", "tokens"] = "characters"
    min_margin: NonNegative = 0.0
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    """What to do with answers cut at max_tokens."""

    @model_validator(mode="after")
    def _k_with_top_k(self) -> "Pairs":
        if (self.rule == "top_k") != (self.k is not None):
            raise ValueError("rule top_k needs k, the pairs a prompt, and no other rule takes it; set both or neither")
        if self.rule == "tournament" and self.length_penalty != 0:
            raise ValueError("rule tournament takes the knockout's pair as it is; leave length_penalty out or use max_min")
        return self
