"""Benchmarks with right answers: log-probabilities, TruthfulQA, lm-eval tasks."""
