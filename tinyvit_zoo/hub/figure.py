"""The figure of the README: accuracy over GMACs of every released classifier but teachers, and of models of timm."""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import ModelError
from ..releases import FAMILY_TITLES, TEACHERS, get_release, list_releases
from ..releases.rivals import RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['Point', 'described', 'description', 'draw', 'points', 'rival_series']


@dataclass(frozen=True)
class Point:
    """One checkpoint in the figure.

    Attributes:
        series: Which marker it gets, a key of `MARKS`.
        name: 'architecture.tag'.
        gmacs: Of one image at the released resolution.
        top1: On ImageNet-1k in %.
        by: Who measured it: 'authors' or 'timm'.
        more_data: Whether it saw more than ImageNet-1k, teachers aside.
    """

    series: str
    name: str
    gmacs: float
    top1: float
    by: str
    more_data: bool


# Series -> color and marker. Rivals are gray.
GRAY = '#8c959f'
MARKS = {
    'TinyViT': ('#0969da', 'o'),
    'Mini-DeiT': ('#bc4c00', 's'),
    'Mini-Swin': ('#8250df', 'D'),
    'TinyMIM': ('#1a7f37', '^'),
    'MAE-Lite': ('#bf3989', 'v'),
    'ViT, DeiT': (GRAY, 's'),
    'Swin': (GRAY, 'D'),
    'ConvNeXt-T': (GRAY, 'P'),
    'mobile networks': (GRAY, 'X'),
}
# Beginning of a rival's architecture -> series.
RIVAL_SERIES = {
    'vit_': 'ViT, DeiT',
    'deit_': 'ViT, DeiT',
    'swin_': 'Swin',
    'convnext_': 'ConvNeXt-T',
    '': 'mobile networks',
}
# Name -> (label, offset in points, side of the text that touches it).
LABELS = {
    'tinyvit_5m_224.dist_in22k_ft_in1k': ('TinyViT-5M', (-4, 5), 'center'),
    'tinyvit_11m_224.dist_in22k_ft_in1k': ('TinyViT-11M', (0, 6), 'center'),
    'tinyvit_21m_224.dist_in22k_ft_in1k': ('TinyViT-21M', (-2, 6), 'center'),
    'tinyvit_21m_384.dist_in22k_ft_in1k': ('TinyViT-21M, 384', (-4, 6), 'center'),
    'tinyvit_21m_512.dist_in22k_ft_in1k': ('TinyViT-21M, 512', (0, 6), 'center'),
    'mini_deit_tiny_patch16_224.distill_in1k': ('Mini-DeiT-Ti', (7, -3), 'left'),
    'mini_deit_base_patch16_224.distill_in1k': ('Mini-DeiT-B', (7, -3), 'left'),
    'mini_deit_base_patch16_384.distill_in1k': ('Mini-DeiT-B, 384', (12, -14), 'center'),
    'mini_swin_small_patch4_window7_224.distill_in1k': ('Mini-Swin-S', (-7, 2), 'right'),
    'mini_swin_base_patch4_window7_224.distill_in1k': ('Mini-Swin-B', (7, -4), 'left'),
    'mini_swin_base_patch4_window12_384.distill_in1k': ('Mini-Swin-B, 384', (-7, -1), 'right'),
    'tinymim_vit_tiny_star_patch16_224.ft_in1k': ('TinyMIM*-T', (7, -3), 'left'),
    'tinymim_vit_small_patch16_224.ft_in1k': ('TinyMIM-S', (7, -2), 'left'),
    'tinymim_vit_base_patch16_224.ft_in1k': ('TinyMIM-B', (7, -3), 'left'),
    'mae_lite_vit_small_patch16_224.dmae_in1k_ft_in1k': ('MAE-Lite-S', (7, -4), 'left'),
    'mae_lite_vit_tiny_patch16_224.dmae_in1k_ft_in1k': ('MAE-Lite-Ti', (7, -4), 'left'),
    'swin_base_patch4_window12_384.ms_in22k_ft_in1k': ('Swin-B, 384', (0, 6), 'center'),
    'swin_tiny_patch4_window7_224.ms_in1k': ('Swin-T', (-7, -1), 'right'),
    'deit_base_patch16_224.fb_in1k': ('DeiT-B', (7, -3), 'left'),
    'deit_small_patch16_224.fb_in1k': ('DeiT-S', (7, -4), 'left'),
    'deit_tiny_patch16_224.fb_in1k': ('DeiT-Ti', (7, -3), 'left'),
}
TICKS = (1, 2, 5, 10, 20, 50)


def points() -> list[Point]:
    """Every released classifier with a published top-1 by its default protocol, teachers aside, then the rivals."""
    found = [
        Point(
            FAMILY_TITLES[row['family']],
            row['name'],
            row['gmacs'],
            row['top1'],
            row['top1_by'],
            'imagenet-22k' in get_release(row['name']).datasets,
        )
        for row in list_releases()
        if row['top1'] is not None and row['family'] not in TEACHERS
    ]
    for rival in RIVALS:
        series = rival_series(rival.architecture)
        found.append(Point(series, rival.name, rival.gmacs, rival.top1, 'timm', rival.more_data))
    return found


def rival_series(architecture: str) -> str:
    """The series of a model of timm."""
    return next(series for start, series in RIVAL_SERIES.items() if architecture.startswith(start))


def description(shown: list[Point]) -> str:
    """Text of the points, one a line; the file holds it, so that it can be checked without drawing."""
    lines = (
        f'{p.series}: {p.name}, {p.gmacs:.3f} GMACs, {p.top1} % ({p.by}{", more data" if p.more_data else ""})'
        for p in shown
    )
    return '\n'.join(('Top-1 on ImageNet-1k over GMACs of one image, and who measured it.', *lines))


def described(path: Path) -> str | None:
    """The description in a figure that `draw` wrote; None where there is none."""
    found = re.search('<dc:description>(.*?)</dc:description>', path.read_text(), re.DOTALL) if path.is_file() else None
    return found and html.unescape(found[1])


def draw(shown: list[Point], path: Path) -> None:
    """Write the figure as SVG. The same points and version of matplotlib give the same bytes.

    Raises:
        ModelError: If matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ModelError("The figure needs matplotlib: pip install 'tinyvit-zoo[eval]'.") from e
    style: dict[str, Any] = {
        'svg.hashsalt': 'tinyvit-zoo',
        'svg.fonttype': 'path',
        'font.family': 'DejaVu Sans',
        'font.size': 9,
    }
    settings: dict[Any, Any] = dict(matplotlib.rcParamsDefault) | style | {'backend': 'agg'}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 5.4), facecolor='white', layout='constrained')
        axis = figure.subplots()
        _scatter(axis, shown)
        _label(axis, shown)
        _finish(axis)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = dict(Title='Accuracy over GMACs', Description=description(shown), Date=None, Creator=None)
        figure.savefig(path, format='svg', metadata=metadata)


def _scatter(axis: 'Axes', shown: list[Point]) -> None:
    """Markers: filled for ImageNet-1k alone, hollow for more data; one line in the legend a series."""
    for series, (color, marker) in MARKS.items():
        of_zoo = color != GRAY
        style: dict[str, Any] = dict(
            marker=marker, edgecolors=color, s=34 if of_zoo else 20, linewidths=1.3, zorder=3 if of_zoo else 2
        )
        for more_data in (False, True):
            own = [p for p in shown if p.series == series and p.more_data == more_data]
            face = 'white' if more_data else color
            axis.scatter([p.gmacs for p in own], [p.top1 for p in own], facecolors=face, **style)
        axis.scatter([], [], facecolors=color, label=series, **style)
    axis.scatter([], [], marker='o', s=34, facecolors='white', edgecolors='black', label='hollow: more data')


def _label(axis: 'Axes', shown: list[Point]) -> None:
    for point in shown:
        if point.name in LABELS:
            text, offset, side = LABELS[point.name]
            axis.annotate(
                text,
                (point.gmacs, point.top1),
                xytext=offset,
                textcoords='offset points',
                ha=side,
                fontsize=7.5,
                color=MARKS[point.series][0],
            )


def _finish(axis: 'Axes') -> None:
    axis.set_xscale('log')
    axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axis.minorticks_off()
    axis.set(xlim=(0.8, 90), ylim=(71.3, 87.4))
    axis.set(xlabel='GMACs of one image (log scale)', ylabel='ImageNet-1k top-1, %')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    from matplotlib.legend import Legend  # a second `axis.legend` would replace the first

    handles, labels = axis.get_legend_handles_labels()
    split = sum(color != GRAY for color, _ in MARKS.values())
    for title, own, right in (('the zoo', slice(split), 0.74), ('timm', slice(split, None), 1.0)):
        place: dict[str, Any] = dict(loc='lower right', bbox_to_anchor=(right, 0.0), alignment='left')
        axis.add_artist(Legend(axis, handles[own], labels[own], title=title, frameon=False, fontsize=8.5, **place))
