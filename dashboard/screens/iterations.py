"""One run over its iterations: scores, training curves, preference pairs, what the hooks decided."""

import streamlit as st

from dashboard import charts, markup
from dashboard import format as f
from dashboard.charts import Trace
from dashboard.curves import draw_iterations, grid
from dashboard.lineage_graph import lineage_graph
from dashboard.markup import Column
from dashboard.over_optimisation import in_words, over_optimisation, policy
from dashboard.source import empty, expected_errors, pick_run, read
from db import views
from db.models import PreferenceSet
from db.rewards import Rewarded, reward_curve
from db.views import RunStatus

Curves = dict[str, dict[str, list[tuple[int, float | None]]]]

# Chart -> {metric of the curve: name of its line}, in the order on the page.
_DPO = {
    "DPO loss": {"loss": "loss"},
    "Reward margin": {"rewards/margins": "chosen minus rejected"},
    "Implicit reward": {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    "KL, nats a response": {"kl": "to the reference", "kl_first": "to the first policy"},
    "Reward accuracy": {"rewards/accuracies": "accuracy"},
    "Length of the answers, tokens": {"tokens/chosen": "chosen", "tokens/rejected": "rejected"},
}
_BEFORE = {
    "sft": "SFT loss",
    "reward": "Reward model loss",
    "preference": "Preference model loss",
    "gold_reward": "Gold reward model loss",
}


def page() -> None:
    st.title("Iterations", anchor=False)
    with expected_errors():
        run = pick_run()
        if run is None:
            return
        status = read(views.run_status, run)
        st.html(_summary(status))
        nodes = read(views.lineage, run)
        if nodes:
            st.header("Lineage", anchor=False)
            st.html(lineage_graph(nodes))
        series = read(views.iteration_curves, run)
        if series:
            st.header("Scores", anchor=False)
            st.caption(
                "With 95 % bands. Short dashes: the policy that the loop starts from; long ones: an offline baseline from it."
            )
            draw_iterations(series)
        else:
            empty("No scores yet", "No policy of this run has been evaluated so far; the Runs page shows where it stands.")
        _rewards(read(reward_curve, run))
        _training(read(views.training_curves, run))
        _preferences(read(views.preference_statistics, run))
        _decisions(status)


def _summary(status: RunStatus) -> str:
    summary = status.summary
    best = summary.best_checkpoint
    rule = f"rule: {status.best_rule}" if status.best_rule else ""
    return markup.facts(
        [
            ("Best checkpoint", best or f.ABSENT, rule if best else "no hook has chosen one yet"),
            ("Iterations", str(summary.iterations), summary.status),
            ("Recipe", summary.recipe_name, status.recipe_hash[:12]),
        ]
    )


def _rewards(points: list[Rewarded]) -> None:
    if len([point for point in points if point.kl is not None and point.gold is not None]) < 2:
        return
    st.header("Over-optimisation", anchor=False)
    st.caption(
        "Mean reward on the run's held-out prompts. Where the gold reward turns down while the proxy's still rises, the loop has "
        "begun to learn the proxy's faults."
    )
    left, right = st.columns([3, 2], gap="medium")
    left.vega_lite_chart(over_optimisation(points), alt=in_words(points), key="over-optimisation")
    columns = [Column("Policy"), *(Column(name, numeric=True) for name in ("KL", "Proxy reward", "Gold reward"))]
    rows = [[policy(one), f.decimal(one.kl, 3), f.score(one.proxy), f.score(one.gold)] for one in points]
    right.html(markup.plain_table("Reward and KL by policy", columns, rows))


def _training(curves: Curves) -> None:
    loops = [(stage, metrics) for stage, metrics in curves.items() if stage.startswith("dpo[")]
    panels = [(title, _traces(loops, names)) for title, names in _DPO.items()]
    before = [(title, [(stage, curves[stage])]) for stage, title in _BEFORE.items() if stage in curves]
    on_best = [(stage, metrics) for stage, metrics in curves.items() if stage.startswith("best_of_n[")]
    panels += [("Best-of-n SFT loss", _traces(on_best, {"loss": "loss"}))]
    panels += [(title, _traces(stages, {"loss": "loss"})) for title, stages in before]
    panels = [(title, traces) for title, traces in panels if traces]
    if not panels:
        return
    st.header("Training", anchor=False)
    st.caption("By optimiser step; the iterations stand one after the other, each from its dashed line on.")

    def draw(index: int) -> None:
        title, traces = panels[index]
        st.html(markup.heading(title))
        st.vega_lite_chart(charts.training(traces), alt=f"{title}. {charts.training_in_words(traces)}", key=f"training-{index}")

    grid(len(panels), draw)


def _traces(stages: list[tuple[str, dict[str, list[tuple[int, float | None]]]]], names: dict[str, str]) -> list[Trace]:
    found = {name: [(stage, curves[metric]) for stage, curves in stages if metric in curves] for metric, name in names.items()}
    first, *others = found
    # The same numbers twice, such as the KL to a reference that is the first policy, are one line.
    found = {first: found[first]} | {name: found[name] for name in others if found[name] != found[first]}
    return [Trace(name, several) for name, several in found.items() if several]


def _preferences(sets: list[PreferenceSet]) -> None:
    if not sets:
        return
    st.header("Preference pairs", anchor=False)
    st.caption("What each iteration trained on: mean reward of all its samples and of the two sides of its pairs, mean lengths.")
    names = ["Iteration", "Prompts", "Pairs", "Reward", "Reward chosen", "Reward rejected", "Margin"]
    names += ["Tokens", "Tokens chosen", "Tokens rejected"]
    columns = [*(Column(name, numeric=True) for name in names), Column("Prompts without a pair")]
    rows = []
    for one in sets:
        rewards = [one.reward_mean, one.reward_chosen, one.reward_rejected, one.margin_mean]
        lengths = [one.tokens_mean, one.tokens_chosen, one.tokens_rejected]
        dropped = ", ".join(f"{n} {str(rule).replace('_', ' ')}" for rule, n in one.dropped.items() if n) or "none"
        numbers = [f.count(one.n_prompts), f.count(one.n_pairs), *(f.decimal(r, 2) for r in rewards)]
        rows.append([str(one.iteration), *numbers, *(f.count(tokens) for tokens in lengths), dropped])
    st.html(markup.plain_table("Preference pairs by iteration", columns, rows))


def _decisions(status: RunStatus) -> None:
    rows = [
        [f"iteration {iteration}", said.get("hook", ""), str(said.get("action", "")).replace("_", " "), said.get("reason", "")]
        for iteration, decisions in status.decisions.items()
        for said in decisions
    ]
    if not rows:
        return
    st.header("Hooks", anchor=False)
    st.caption("What the training hooks decided after each iteration, and why.")
    columns = [Column("After"), Column("Hook"), Column("Decision"), Column("Reason", wide=True)]
    st.html(markup.plain_table("Decisions of the training hooks", columns, rows))


page()
