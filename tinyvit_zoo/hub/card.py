"""Model card of a release, and its published results in the two forms that the Hub reads.

All of it is a view of `releases` and of the model on the meta device: nothing is downloaded, no fact stands twice.
"""

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..common.text import join_numbers
from ..info import token_lines
from ..releases import FAMILY_TITLES, Protocol, Release, Result, family_of, get_release, markdown_table
from .sizes import family_rows, model_facts, shapes_of, sizes_of
from .snippets import render_overlay, render_snippets

__all__ = ['EVAL_RESULTS', 'render_card', 'render_eval_results']

EVAL_RESULTS = '.eval_results'

# Data sets by the names of `releases` -> (title, id on the Hub). ReaL is another set of labels for the same images as
# ImageNet-1k, and no data set of its own there.
DATASETS = {
    'imagenet-1k': ('ImageNet-1k', 'ILSVRC/imagenet-1k'),
    'imagenet-real': ('ImageNet-ReaL', None),
    'imagenet-v2': ('ImageNet-V2', 'vaishaal/ImageNetV2'),
    'imagenet-a': ('ImageNet-A', 'barkermrl/imagenet-a'),
    'imagenet-r': ('ImageNet-R', 'axiong/imagenet-r'),
    'imagenet-sketch': ('ImageNet-Sketch', 'songweig/imagenet_sketch'),
}
NOT_MEASURED = 'None of it was measured by tinyvit-zoo.'


def render_card(name: str) -> str:
    """Text of the README.md in the page of a release, 'architecture.tag'; no weights are needed.

    Raises:
        KeyError: If there is no such release.
    """
    release = get_release(name)
    parts = (
        f'---\n{_front_matter(release).to_yaml()}\n---',
        f'# {release.name}',
        _introduction(release),
        f'## Model Details\n\n{_details(release)}',
        f'## Model Usage\n\n{_usage(release)}',
        f'## Preprocessing and published accuracy\n\n{_accuracy(release)}',
        f'## Resolutions\n\n{_resolutions(release)}',
        *([f'## Published results on other tasks\n\n{_transfers(release)}'] if release.transfers else []),
        f'## Model Comparison\n\n{_comparison(release)}',
        f'## What was verified\n\n{_verified(release)}',
        *([f'## Known quirks\n\n{_list(release.notes)}'] if release.notes else []),
        f'## Citation\n\n```bibtex\n{release.paper.bibtex}\n```',
    )
    return '\n\n'.join(parts) + '\n'


def render_eval_results(name: str) -> dict[str, str]:
    """The files of `.eval_results/` of a release: path -> YAML, one file per data set that has an id on the Hub.

    One entry per published top-1 accuracy, with the preprocessing in its notes. The Hub lists no benchmark of these
    data sets whose tasks have names, so every entry is of the task 'default'.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    release = get_release(name)
    for protocol, result in _results(release):
        dataset_id = DATASETS[result.dataset][1]
        if dataset_id is not None:
            entries.setdefault(result.dataset, []).append(
                EvalResultEntry(
                    dataset_id=dataset_id,
                    task_id='default',
                    value=result.top1,
                    source_url=result.source_url,
                    source_name=result.source,
                    notes=f'top-1 accuracy, %; {_preprocessing(protocol)}; measured by {_whom(result)}',
                )
            )
    return {
        f'{EVAL_RESULTS}/{dataset}.yaml': yaml_dump(eval_result_entries_to_yaml(e)) for dataset, e in entries.items()
    }


def _results(release: Release) -> list[tuple[Protocol, Result]]:
    return [(protocol, result) for protocol in release.protocols for result in protocol.results]


def _front_matter(release: Release) -> ModelCardData:
    task = 'image-classification' if release.num_classes else 'image-feature-extraction'
    results = _model_index(release)
    return ModelCardData(
        license=release.license.spdx if release.license.given else 'unknown',
        library_name='timm',
        pipeline_tag=task,
        tags=[task, 'timm', 'transformers', 'tinyvit-zoo'],
        datasets=list(release.datasets),
        base_model=release.hf_hub_id,
        model_name=release.name if results else None,
        eval_results=results or None,
    )


def _model_index(release: Release) -> list[EvalResult]:
    """The first published result of every data set: the legacy format has room for one source of each."""
    first: dict[str, tuple[Protocol, Result]] = {}
    for protocol, result in _results(release):
        first.setdefault(result.dataset, (protocol, result))
    return [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset,
            dataset_name=DATASETS[dataset][0],
            dataset_args=dict(preprocessing=_preprocessing(protocol)),
            metric_type='accuracy',
            metric_name=metric,
            metric_value=value,
            source_name=result.source,
            source_url=result.source_url,
        )
        for dataset, (protocol, result) in first.items()
        for metric, value in (('top-1 accuracy', result.top1), ('top-5 accuracy', result.top5))
        if value is not None
    ]


def _introduction(release: Release) -> str:
    kind = 'image classification model' if release.num_classes else 'image feature encoder'
    return (
        f'A {FAMILY_TITLES[family_of(release)]} {kind}. Trained by the authors of the paper ({release.training}). Runs '
        'in [timm](https://github.com/huggingface/pytorch-image-models) with the package tinyvit-zoo: '
        '`pip install tinyvit-zoo`.'
    )


def _details(release: Release) -> str:
    model = model_facts(release.architecture, release.num_classes)
    height, width = model['img_size']
    stats = [
        f'Params (M): {model["params"] / 1e6:.2f}',
        f'GMACs: {model["gmacs"]:.3f}',
        f'Image size: {height} x {width}',
        f'Classes: {f"{release.num_classes} ({release.labels})" if release.num_classes else "none, an encoder"}',
        *(f'{label.capitalize()}: {value}' for label, value in token_lines(model).items()),
    ]
    stats.append(f'Throughput: {_throughput(release)}')
    weights = release.url or f'with a browser, {release.manual_download}'
    lines = [
        f'**Model Type:** {"Image classification" if release.num_classes else "Image feature encoder"} / backbone',
        '**Model Stats:**' + ''.join(f'\n  - {line}' for line in stats),
        f'**Paper:** [{release.paper.title}]({release.paper.url}), {release.paper.venue}',
        f'**Datasets:** {", ".join(DATASETS[d][0] if d in DATASETS else "ImageNet-22k" for d in release.datasets)}',
        *([f'**Trained from:** `{release.parent}`'] if release.parent else []),
        f'**Original:** {release.origin_url}',
        f'**Weights:** {weights}',
        f'**License of the weights:** {_license(release)}',
        '**License of the code that runs them (tinyvit-zoo):** Apache-2.0',
    ]
    return _list(lines)


def _throughput(release: Release) -> str:
    speed = release.speed
    if speed is None:
        return 'none known to be published'
    return (
        f'{speed.images_per_second} images/s on {speed.setting}, measured by the authors '
        f'([{speed.source}]({speed.source_url}))'
    )


def _license(release: Release) -> str:
    license = release.license
    if not license.given:
        return f'no license given (looked for at {license.source})'
    stated = f'{license.title}, stated at {license.source}'
    if license.hub_field:
        stated += (
            f"; the license field of `{release.hf_hub_id}`, a copy of the same weights, says '{license.hub_field}'"
        )
    return stated


def _list(lines: list[str] | tuple[str, ...]) -> str:
    return '\n'.join(f'- {line}' for line in lines)


def _usage(release: Release) -> str:
    first = []
    if release.manual_download:
        first.append(
            f'No program can fetch these weights. Get {release.manual_download} with a browser; then, once, in '
            f'a shell: `tinyvit-zoo import FILE --name {release.name}`'
        )
    channels_last = family_of(release) == 'mini_swin'
    snippets = render_snippets(release, shapes_of(release.architecture, release.num_classes), channels_last)
    return '\n\n'.join(first + [f'### {title}\n\n```python\n{code}\n```' for title, code in snippets.items()])


def _preprocessing(protocol: Protocol) -> str:
    return f'{protocol.img_size} px, crop {protocol.crop_pct:g} ({protocol.crop_mode}), {protocol.interpolation}'


def _whom(result: Result) -> str:
    return {'timm': "timm's author"}.get(result.by, f'the {result.by}')


def _accuracy(release: Release) -> str:
    rows = [
        f'| {result.dataset} | {result.top1} | {"-" if result.top5 is None else result.top5} '
        f'| {_preprocessing(protocol)} | {result.by}: [{result.source}]({result.source_url}) |'
        for protocol, result in _results(release)
    ]
    normalization = f'normalized with mean {join_numbers(release.mean)} and std {join_numbers(release.std)}'
    default = f'`pretrained=True` comes with {_preprocessing(release.protocol)}, {normalization}'
    if not rows:
        return f'No accuracy of these weights without further training was published. {default}.'
    head = ('| data | top-1 | top-5 | preprocessing | measured by |', '| --- | ---: | ---: | --- | --- |')
    parts = ['\n'.join((*head, *rows)), f'{NOT_MEASURED} {default}.']
    for protocol in release.protocols[1:]:
        if protocol.results:
            code = render_overlay(release, protocol)
            parts.append(f'For {_preprocessing(protocol)} ({protocol.source}):\n\n```python\n{code}\n```')
    return '\n\n'.join(parts)


def _resolutions(release: Release) -> str:
    sizes = sizes_of(release.architecture, release.num_classes)
    kind = 'windows of the stages with attention' if sizes[0].windows else 'tokens'
    lines = [f'| image | params (M) | GMACs | {kind} |', '| --- | ---: | ---: | --- |']
    for size in sizes:
        native = ' (native)' if size.side == release.img_size else ''
        layout = ', '.join(f'{h}x{w}' for h, w in size.windows) if size.windows else size.tokens
        lines.append(f'| {size.side}{native} | {size.params / 1e6:.2f} | {size.macs / 1e9:.2f} | {layout} |')
    other = next((size.side for size in sizes if size.side > release.img_size), 384)
    call = f"timm.create_model('{release.name}', pretrained=True, img_size={other})"
    return '\n'.join(lines) + f'\n\nCounted from the model, not measured. Another size: `{call}`.'


def _transfers(release: Release) -> str:
    lines = ['| task | data | metric | value | setting | source |', '| --- | --- | --- | ---: | --- | --- |']
    for result in release.transfers:
        lines.append(
            f'| {result.task} | {result.dataset} | {result.metric} | {result.value} | {result.setting or "-"} '
            f'| [{result.source}]({result.source_url}) |'
        )
    return '\n'.join(lines) + f'\n\nMeasured by the authors. {NOT_MEASURED}'


def _comparison(release: Release) -> str:
    table = markdown_table(family_rows(family_of(release)))
    return f'{table}\n\nTop-1 is that on ImageNet-1k with the preprocessing that each model comes with. {NOT_MEASURED}'


def _power(value: float) -> str:
    """1e-08 -> '1e-8'."""
    return f'{value:g}'.replace('e-0', 'e-')


def _verified(release: Release) -> str:
    golden = release.golden
    if golden is None:
        compared = (
            "The authors' code has no classification forward of this model: its outputs could not be compared with "
            'theirs.'
        )
    else:
        compared = (
            f"Compared with what the authors' code computes from the same weights, filled by a rule: {golden.what}. "
            f'They differ by less than {_power(golden.atol)} in double precision '
            f'(`tests/golden/{golden.reference}.npz` of tinyvit-zoo'
            f'{"; its numbers are in single precision" if golden.atol > 1e-7 else ""}).'
        )
    return _list(
        [
            compared,
            'The released file was not available where tinyvit-zoo was developed: its weights were not run, and no '
            'accuracy was measured.',
        ]
    )
