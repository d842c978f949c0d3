"""Weights of a `ZooBackbone`."""


def load_weights(backbone, source, prefix=None):
    raise NotImplementedError
