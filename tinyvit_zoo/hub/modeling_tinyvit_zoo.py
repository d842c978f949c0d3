"""Lets transformers load this page with `trust_remote_code=True`. The models themselves come from tinyvit-zoo."""

import transformers

try:
    import tinyvit_zoo  # noqa: F401  registers the architecture of this page with timm
except ModuleNotFoundError as e:
    raise ImportError(
        f'This model needs the package tinyvit-zoo ({e}): pip install tinyvit-zoo, or pip install . in a clone of it'
    ) from e


class AsTransformersOwn:
    """transformers' own class but for the import above: the weights it saves have timm's names too."""

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


# Named as transformers' own: its pipelines know a model by the name of its class, and warn of any other.
class TimmWrapperModel(AsTransformersOwn, transformers.TimmWrapperModel):
    """A model of tinyvit-zoo without its classifier."""


class TimmWrapperForImageClassification(AsTransformersOwn, transformers.TimmWrapperForImageClassification):
    """A model of tinyvit-zoo with its classifier."""
