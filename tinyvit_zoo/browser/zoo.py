"""What the page shows: every release and timm's models of like size, each number with its source.

All of it is a view of `releases` and of the rows in `benchmarks/results/`. What nobody published or measured is null.
"""

from collections.abc import Iterable
from typing import Any

import timm

from ..hub.figure import LABELS, rival_series
from ..hub.snippets import render_uses
from ..releases import FAMILY_TITLES, License, Protocol, Release, Result, all_releases, family_of, find_release
from ..releases.rivals import RIVALS, SOURCE_URL, Rival
from ..version import __version__
from .measured import figures, results_folder
from .sources import Sources

__all__ = ['FORMAT', 'METHODS', 'is_own_size', 'zoo_facts']

FORMAT = 1
"""Of `zoo.json`; `space/zoo.schema.json` describes it."""

METHODS = {
    'dist': 'distillation in pre-training',
    'distill': 'weight multiplexing and distillation',
    'in1k': 'supervised',
    'deit': 'supervised',
    'mim': 'TinyMIM',
    'ft': 'TinyMIM',
    'mae': 'MAE',
    'dmae': 'D-MAE',
    'mocov3': 'MoCo v3',
    'openai': 'CLIP',
}
"""How weights were trained, by the first word of their tag. `ft` alone begins the tags of TinyMIM."""


def zoo_facts() -> dict[str, Any]:
    """The content of `zoo.json`, without what `site` adds about trying images.

    Raises:
        FileNotFoundError: If `benchmarks/results/` is missing.
        ModelError: If a file in it is damaged.
    """
    sources = Sources()
    speeds = figures(results_folder())
    models = [_release(release, speeds, sources) for release in all_releases()]
    models += [_rival(rival, speeds, sources) for rival in RIVALS]
    return dict(
        format=FORMAT,
        version=__version__,
        families=[dict(id=family, title=title) for family, title in FAMILY_TITLES.items()],
        models=models,
        sources=sources.table,
    )


def _release(release: Release, speeds: Iterable[dict[str, Any]], sources: Sources) -> dict[str, Any]:
    profile = release.profile
    counted = sources.key('Counted from the model on the meta device (tinyvit-zoo info)')
    stated = sources.key(f'The release of {FAMILY_TITLES[family_of(release)]}', release.origin_url)
    results = [_result(p, r, sources) for p in release.protocols for r in p.results]
    default = release.protocol.result()
    usual = find_release(release.architecture)
    like_usual = usual is not None and usual.profile == profile  # another head is another speed
    return dict(
        name=release.name,
        architecture=release.architecture,
        label=_label(release.name),
        of='zoo',
        family=family_of(release),
        series=FAMILY_TITLES[family_of(release)],
        task='classification' if release.num_classes else 'features',
        method=METHODS[release.tag.partition('_')[0]],
        training=release.training,
        more_data='imagenet-22k' in release.datasets,
        img_size=_number(release.img_size, stated),
        num_classes=_number(release.num_classes, stated),
        params=_number(profile.params, counted),
        gmacs=_number(round(profile.macs / 1e9, 3), counted),
        megabytes=_number(round(profile.bytes / 1e6, 2), counted),
        top1=default and _result(release.protocol, default, sources),
        results=results,
        measured=_speeds(release.architecture, speeds, sources) if like_usual else [],
        license=dict(id=release.license.spdx, title=_license(release), url=release.license.source),
        paper=dict(title=release.paper.title, url=release.paper.url, venue=release.paper.venue),
        weights=dict(url=release.url, hub=release.hf_hub_id, by_hand=release.manual_download),
        notes=list(release.notes),
        snippets=[use._asdict() for use in render_uses(release)],
    )


def _rival(rival: Rival, speeds: Iterable[dict[str, Any]], sources: Sources) -> dict[str, Any]:
    counted = sources.key('Counted from the model of timm on the meta device (as tinyvit-zoo info does)')
    table = sources.key('timm results/results-imagenet.csv', SOURCE_URL)
    top1 = dict(dataset='imagenet-1k', top1=rival.top1, top5=None, by='timm', protocol=None, source=table)
    return dict(
        name=rival.name,
        architecture=rival.architecture,
        label=_label(rival.name),
        of='timm',
        family=None,
        series=rival_series(rival.architecture),
        task='classification',
        method=None,
        training=None,
        more_data=rival.more_data,
        img_size=_number(rival.img_size, table),
        num_classes=_number(1000, table),
        params=_number(rival.params, counted),
        gmacs=_number(rival.gmacs, counted),
        megabytes=_number(round(rival.bytes / 1e6, 2), counted),
        top1=top1,
        results=[top1],
        measured=_speeds(rival.architecture, speeds, sources) if is_own_size(rival) else [],
        license=dict(id=rival.license, title=License(rival.license, SOURCE_URL).title, url=None),
        paper=None,
        weights=dict(url=None, hub=f'timm/{rival.name}', by_hand=None),
        notes=[],
        snippets=[],
    )


def is_own_size(rival: Rival) -> bool:
    """Whether it is listed at the size that timm makes its architecture with: speeds are measured at that one."""
    cfg = timm.get_pretrained_cfg(rival.architecture)
    return cfg is not None and cfg.input_size[-1] == rival.img_size


def _label(name: str) -> str | None:
    """A short name, where the figure of the README has one."""
    return LABELS[name][0] if name in LABELS else None


def _number(value: float, source: str) -> dict[str, Any]:
    return dict(value=value, source=source)


def _result(protocol: Protocol, result: Result, sources: Sources) -> dict[str, Any]:
    return dict(
        dataset=result.dataset,
        top1=result.top1,
        top5=result.top5,
        by=result.by,
        protocol=dict(
            img_size=protocol.img_size,
            crop_pct=protocol.crop_pct,
            crop_mode=protocol.crop_mode,
            interpolation=protocol.interpolation,
        ),
        source=sources.key(result.source, result.source_url),
    )


def _speeds(architecture: str, speeds: Iterable[dict[str, Any]], sources: Sources) -> list[dict[str, Any]]:
    """Inference at the model's own size; processors as they are before emulated ones, one image before several."""
    shown = ('form', 'batch', 'images_per_second', 'machine', 'emulated', 'threads', 'dtype', 'date', 'commit')
    return [
        {key: speed[key] for key in shown}
        | dict(ms=round(speed['ms'], 3), source=sources.key(f'Measured here: benchmarks/results/{speed["file"]}'))
        for speed in sorted(speeds, key=lambda speed: (speed['emulated'], speed['machine'], speed['batch']))
        if speed['model'] == architecture and speed['mode'] == 'inference' and not speed['img_size']
    ]


def _license(release: Release) -> str:
    return release.license.title if release.license.given else 'none given'
