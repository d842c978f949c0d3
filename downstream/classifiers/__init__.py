"""What learns from features: the classifiers of few-shot episodes and linear probes."""
