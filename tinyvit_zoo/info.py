"""Facts about a model: those of its release, and those of the model itself.

The former come from `releases`. Parameters, multiply-accumulates (MACs), heads and tokens are read off the model on the
meta device, where it has shapes and no memory, so nothing is downloaded.
"""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from itertools import groupby
from typing import Any, cast

import torch
from timm.models import parse_model_name
from timm.models._input import get_model_input_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .build import build_model, resolve_name
from .checkpoints import imported_path
from .common.preprocessing import model_data_config
from .releases import (
    MEASURED_BY_OTHERS,
    Profile,
    Protocol,
    Release,
    find_release,
    list_releases,
    markdown_table,
)

__all__ = [
    'MEASURED_BY_OTHERS',
    'Profile',
    'count_profiles',
    'describe',
    'list_releases',
    'markdown_table',
    'profile_model',
    'token_lines',
]


def profile_model(model: nn.Module) -> Profile:
    """Parameters, MACs and bytes of a model at the input size it is made for.

    MACs are those of convolutions and matrix products, padding of windows included. A model on another device than
    meta is really run once.
    """
    parameter = next(model.parameters())
    size = get_model_input_config(model)['input_size']
    image = torch.empty(1, *size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return Profile(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
        bytes=sum(v.numel() * v.element_size() for v in model.state_dict().values()),
    )


def count_profiles(releases: Iterable[Release]) -> dict[str, Profile]:
    """The profiles of releases by their names, counted from the models; `Release.profile` is the stored one."""
    return {release.name: _count(release.architecture, release.num_classes) for release in releases}


@cache
def _count(architecture: str, num_classes: int) -> Profile:
    return profile_model(build_model(architecture, device='meta', num_classes=num_classes))


def describe(name: str, img_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """All known facts about a model, for printing or as JSON.

    Args:
        name: 'architecture', 'architecture.tag', 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'.
        img_size: (H, W) instead of the model's own.

    Returns:
        'release' (None unless the name is that of a release), 'protocols', 'model' (parameters, MACs, the window of
        every stage that has attention, and `_token_facts`, all at the real size) and 'preprocessing' (timm's
        `resolve_model_data_config` at the real size).

    Raises:
        ModelError: On an unknown name or an impossible size.
    """
    name = resolve_name(name)
    model = build_model(name, device='meta', **({'img_size': img_size} if img_size else {}))
    # A folder or page may hold anyone's weights: the accuracies of a release do not hold for them.
    release = find_release(name) if parse_model_name(name)[0] is None else None
    return dict(
        name=release.name if release else name,
        architecture=cast(Any, model).pretrained_cfg['architecture'],
        release=release and _release_facts(release),
        protocols=[_protocol_facts(p, p is release.protocol) for p in release.protocols] if release else [],
        measured=MEASURED_BY_OTHERS if release else None,
        model=_model_facts(model),
        preprocessing=model_data_config(model),
    )


def _release_facts(release: Release) -> dict[str, Any]:
    facts = (
        *('name', 'tag', 'url', 'download_page', 'file', 'file_doubt', 'manual_download', 'sha256', 'hf_hub_id'),
        *('num_classes', 'labels', 'training', 'origin_url', 'parent', 'datasets'),
    )
    imported = imported_path(release.name)
    return dict(
        {fact: getattr(release, fact) for fact in facts},
        license=dict(asdict(release.license), given=release.license.given),
        paper=dict(title=release.paper.title, url=release.paper.url),
        notes=list(release.notes),
        transfers=[asdict(result) for result in release.transfers],
        speed=release.speed and asdict(release.speed),
        imported=str(imported) if imported.is_dir() else None,
    )


def _protocol_facts(protocol: Protocol, default: bool) -> dict[str, Any]:
    return dict(asdict(protocol), default=default)


def _model_facts(model: nn.Module) -> dict[str, Any]:
    profile = profile_model(model)
    cfg = cast(Any, model).pretrained_cfg
    return dict(
        params=profile.params,
        gmacs=round(profile.macs / 1e9, 3),
        bytes=profile.bytes,
        img_size=get_model_input_config(model)['input_size'][-2:],
        num_classes=model.num_classes,
        windows=_windows(model),
        **_token_facts(model),
        tag=cfg.get('tag'),
        license=cfg.get('license'),
        label_names=cfg.get('label_names'),
    )


def _windows(model: nn.Module) -> list[list[int] | None] | None:
    """Window (h, w) of every stage, None for a stage without attention; None for a model without windows."""
    sizes = getattr(model, 'window_sizes', None)
    if sizes is None:
        return None
    attends = [any(hasattr(block, 'attn') for block in stage.blocks) for stage in cast(Any, model).stages]
    return [list(size) if has else None for size, has in zip(sizes, attends, strict=True)]


POOLINGS = {
    'avg': 'mean of the patch tokens',
    'token': 'the first token',
    'max': 'maximum of the patch tokens',
    'avgmax': 'mean of mean and maximum of the patch tokens',
    'map': 'attention pooling',
}


def _token_facts(module: nn.Module) -> dict[str, Any]:
    """Facts about a model of tokens that no state dict shows, under timm's names for the parts of a ViT.

    Returns:
        'heads' (number per block), 'prefix_tokens' (names in their order), 'patches' (grid of the patch tokens),
        'pooling' (in words) and 'blocks_run' (how many blocks the features went through). None for each in a model
        without tokens.
    """
    model = cast(Any, module)
    if not hasattr(model, 'num_prefix_tokens'):
        return dict.fromkeys(('heads', 'prefix_tokens', 'patches', 'pooling', 'blocks_run'))
    heads = [block.attn.num_heads for block in model.blocks if hasattr(getattr(block, 'attn', None), 'num_heads')]
    blocks_run = getattr(model, 'forward_depth', len(model.blocks))
    return dict(
        heads=heads or None,
        prefix_tokens=_prefix_tokens(model),
        patches=list(model.patch_embed.grid_size),
        pooling=_pooling(model, blocks_run == len(model.blocks)),
        blocks_run=blocks_run,
    )


def _prefix_tokens(model: nn.Module) -> list[str]:
    """Names in timm's order: class, distillation, registers."""
    tokens = {name: getattr(model, f'{name}_token', None) for name in ('cls', 'dist', 'reg')}
    return [name for name, token in tokens.items() if token is not None for _ in range(token.shape[1])]


def _pooling(model: nn.Module, whole: bool) -> str:
    """Pooling in words; with the final norm only where the features went through the whole model."""

    def runs(layer: str) -> bool:
        return not isinstance(getattr(model, layer, nn.Identity()), nn.Identity)

    pool = cast(Any, model).global_pool
    steps = [POOLINGS.get(pool, pool or 'none')]
    if runs('conv1x1'):
        steps.insert(0, f'conv1x1 to {model.num_features} channels')
    if whole and runs('norm'):
        steps.insert(0, 'norm')
    if runs('fc_norm'):
        steps.append('fc_norm')
    if isinstance(getattr(model, 'proj', None), nn.Linear):
        steps.append(f'projection to {model.num_features} channels')
    if isinstance(getattr(model, 'head_dist', None), nn.Linear):
        token = 'the dist token' if getattr(model, 'dist_token', None) is not None else 'dist_norm of the cls token'
        steps[-1] += f'; {token} to a classifier of its own'
    return ', '.join(steps)


def token_lines(model: dict[str, Any]) -> dict[str, str]:
    """The facts of `describe` about the tokens of a model, in words; empty for a model without tokens."""
    if model['heads'] is None:
        return {}
    lines = {
        'attention heads': _heads_in_words(model['heads']),
        'tokens': ', '.join((*model['prefix_tokens'], f'{model["patches"][0]}x{model["patches"][1]} patches')),
        'pooling': model['pooling'],
    }
    if model['blocks_run'] < len(model['heads']):
        lines['features'] = f'those after block {model["blocks_run"]} of {len(model["heads"])}'
    return lines


def _heads_in_words(heads: list[int]) -> str:
    """Heads per block as '12 in every block' or '6 in blocks 0-10, 12 in block 11'."""
    if len(set(heads)) == 1:
        return f'{heads[0]} in every block'
    runs, first = [], 0
    for number, same in groupby(heads):
        last = first + len(list(same)) - 1
        runs.append(f'{number} in blocks {first}-{last}' if last > first else f'{number} in block {first}')
        first = last + 1
    return ', '.join(runs)
