"""Classifiers on features: those of few-shot episodes and of linear probes."""
