"""Evaluation: metrics, what can be claimed from them, baselines and pictures."""
