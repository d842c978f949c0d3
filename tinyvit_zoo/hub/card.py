"""The model card of a release: what a reader of its page has to know, all of it from `info.describe`."""

from typing import Any

from ..info import describe, token_lines

__all__ = ['render_card']


def render_card(name: str) -> str:
    """Text of the README.md beside the config.json of a release, 'architecture.tag'; no weights are needed."""
    facts = describe(name)
    training = facts['release']['training']
    parts = (
        _front_matter(facts),
        f'# {facts["name"]}\n\n{training[0].upper()}{training[1:]}.',
        _list(_release_lines(facts['release'])),
        _list(_model_lines(facts['model'])),
        _results(facts['protocols']),
        *([_list(facts['release']['notes'])] if facts['release']['notes'] else []),
        _usage(facts),
    )
    return '\n\n'.join(parts) + '\n'


def _front_matter(facts: dict[str, Any]) -> str:
    licence = facts['release']['licence']
    kind = 'classification' if facts['model']['num_classes'] else 'feature-extraction'
    lines = (
        '---',
        f'license: {licence["spdx"] if licence["given"] else "unknown"}',
        'library_name: timm',
        f'pipeline_tag: image-{kind}',
        'tags:',
        '- timm',
        '- tinyvit-zoo',
        '---',
    )
    return '\n'.join(lines)


def _list(lines: list[str]) -> str:
    return '\n'.join(f'- {line}' for line in lines)


def _release_lines(release: dict[str, Any]) -> list[str]:
    licence = release['licence']
    stated = f'{licence["spdx"].upper()}, stated at' if licence['given'] else 'none given at'
    return [
        f'Paper: {release["paper"]["title"]}, {release["paper"]["url"]}',
        f'Code of the authors: {release["origin_url"]}',
        f'Licence: {stated} {licence["source"]}',
        f'Weights: {release["url"] or "with a browser, " + release["by_hand"]}',
    ]


def _model_lines(model: dict[str, Any]) -> list[str]:
    height, width = model['img_size']
    lines = [
        f'Parameters: {model["params"] / 1e6:.2f} M; multiply-accumulates: {model["gmacs"]:.3f} G at {height}x{width}',
        f'Classes: {model["num_classes"] or "none, an encoder"}',
    ]
    return lines + [f'{label.capitalize()}: {value}' for label, value in token_lines(model).items()]


def _results(protocols: list[dict[str, Any]]) -> str:
    rows = [
        f'| {result["dataset"]} | {result["top1"]} | {result["top5"] or "-"} '
        f'| {protocol["img_size"]} px, crop {protocol["crop_pct"]:g} ({protocol["crop_mode"]}) '
        f'| {result["by"]}: {result["source"]} |'
        for protocol in protocols
        for result in protocol['results']
    ]
    if not rows:
        return 'No accuracy of these weights without further training was published.'
    head = ('| data | top-1 | top-5 | preprocessing | measured by |', '| --- | ---: | ---: | --- | --- |')
    return '\n'.join((*head, *rows)) + '\n\nNone of it was measured by tinyvit-zoo.'


def _usage(facts: dict[str, Any]) -> str:
    lines = [
        '```python',
        'import timm, tinyvit_zoo',
        '',
        f"model = timm.create_model('{facts['name']}', pretrained=True)",
    ]
    if facts['release']['by_hand']:
        lines.insert(2, f'# Once, in a shell: tinyvit-zoo import FILE --name {facts["name"]}')
    return '\n'.join((*lines, '```'))
