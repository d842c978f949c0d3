"""The releases as rows, for printing, as JSON or as a table in Markdown, that of docs/models.md."""

from fnmatch import fnmatch
from typing import Any

from .families import FAMILIES
from .record import Release

__all__ = ['MEASURED_BY_OTHERS', 'list_releases', 'markdown_table']

MEASURED_BY_OTHERS = 'Accuracies were measured by others, as stated with each one; this project did not measure them.'


def list_releases(pattern: str = '*') -> list[dict[str, Any]]:
    """One row for each released weight whose name, or architecture, matches a shell pattern.

    Returns:
        Rows with family, name, params, gmacs (at the release's own image size), bytes (of its tensors in float32),
        img_size, num_classes, top1 of the default protocol on ImageNet-1k, by whom and where it stands (None where
        nobody published one), license and hf_hub_id.
    """
    return [
        dict(family=family, **_row(release))
        for family, releases in FAMILIES.items()
        for release in releases
        if fnmatch(release.name, pattern) or fnmatch(release.architecture, pattern)
    ]


def _row(release: Release) -> dict[str, Any]:
    result, profile = release.protocol.result(), release.profile
    return dict(
        name=release.name,
        params=profile.params,
        gmacs=round(profile.macs / 1e9, 3),
        bytes=profile.bytes,
        img_size=release.img_size,
        num_classes=release.num_classes,
        top1=result and result.top1,
        top1_by=result and result.by,
        top1_source=result and result.source,
        license=release.license.spdx,
        hf_hub_id=release.hf_hub_id,
    )


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `list_releases` as a table in Markdown, that of docs/models.md."""
    lines = [
        '| model.tag | params (M) | GMACs | image | classes | top-1 (by whom) | Hub copy |',
        '| --- | ---: | ---: | ---: | ---: | --- | --- |',
    ]
    for row in rows:
        top1 = f'{row["top1"]} ({row["top1_by"]})' if row['top1'] else '-'
        classes = row['num_classes'] or '-'
        hub = f'`{row["hf_hub_id"]}`' if row['hf_hub_id'] else '-'
        lines.append(
            f'| `{row["name"]}` | {row["params"] / 1e6:.2f} | {row["gmacs"]:.2f} | {row["img_size"]} '
            f'| {classes} | {top1} | {hub} |'
        )
    return '\n'.join(lines)
