"""Judges: endpoints, replies kept by content, budgets, calibration."""
