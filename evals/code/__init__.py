"""Benchmarks of generated code and the sandbox that runs it."""
