"""Size and cost of every released model, counted once and stored.

Counting needs the models, reading `profiles.json` needs nothing. `tinyvit-zoo cards build` writes that file;
`cards check` and a test compare it with the models.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

__all__ = ['PROFILES', 'Profile', 'find_profile', 'render_profiles', 'stored_profiles']

PROFILES = Path(__file__).with_name('profiles.json')


@dataclass(frozen=True)
class Profile:
    """Size and cost of a model.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates (MACs) of one forward pass over one image.
        bytes: Of the tensors of its state dict, buffers included: the size of model.safetensors without its header.
    """

    params: int
    macs: int
    bytes: int


@cache
def stored_profiles() -> Mapping[str, Profile]:
    """Stored profiles by 'architecture.tag': in float32, at the released image size and with the released head."""
    return {name: Profile(**numbers) for name, numbers in json.loads(PROFILES.read_text()).items()}


def find_profile(name: str) -> Profile:
    """The stored profile of a release.

    Raises:
        LookupError: If there is none.
    """
    profile = stored_profiles().get(name)
    if profile is None:
        raise LookupError(f'{PROFILES.name} has no entry for {name}: run `tinyvit-zoo cards build`.')
    return profile


def render_profiles(profiles: Mapping[str, Profile]) -> str:
    """Text of `profiles.json`, one release a line."""
    lines = [f'  {json.dumps(name)}: {json.dumps(asdict(profile))}' for name, profile in profiles.items()]
    return '{\n' + ',\n'.join(lines) + '\n}\n'
