"""The state dict inside a loaded checkpoint: wrappers opened, prefixes of wrapping modules removed, one part chosen.

Where several parts could be meant, the caller names one: a wrong guess would load without an error.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from ..common.errors import CheckpointError
from ..common.text import first_few, shown
from .archive import MOST_GROWTH
from .keymap import find_key_map

__all__ = ['open_wrappers', 'unwrap']

_logger = logging.getLogger(__name__)

# Keys under which training scripts keep a state dict. Averaged weights are used before plain ones, as timm's own loader
# does; any other two are a question.
AVERAGED, PLAIN = ('state_dict_ema', 'model_ema', 'ema'), ('state_dict', 'model', 'module')
ROLES = ('student', 'teacher', 'encoder', 'base_model', 'timm_model', 'image_encoder')
WRAPPERS = (*AVERAGED, *PLAIN, 'model_state_dict', 'params_ema', 'params', 'net', *ROLES)
# A key of the released Mini-DeiT's weights. Its training code also saves averaged weights, but evaluated the plain ones
# and published their accuracy.
PLAIN_WEIGHTS_COUNT = 'blocks.0.block.norm1.instances.0.weight'
# Prefixes of all names, in any order and number: DDP, timm's and torch's weight averaging, wrapping models.
PREFIXES = ('module.', 'model_ema.', 'ema.', 'model.', *(f'{role}.' for role in ROLES))
# Modules that wrap others somewhere inside a model: torch.compile, FSDP, activation checkpointing.
WRAPPED_INSIDE = re.compile(r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.')
# Training wrappers that are saved whole: prefixes of the trained model, and of everything else. D-MAE also saves its
# teacher and head adapters, MoCo v3 the momentum copy and the predictor.
WHOLE_WRAPPERS = {
    'model.': ('tch_model.', 'attn_adapter.', 'hidden_adapter.'),
    'base_encoder.': ('momentum_encoder.', 'predictor.'),
}
# Entries that are not weights: torch.optim.swa_utils.AveragedModel's counter, thop's counts, states of modules that
# are not tensors.
AVERAGING_COUNTER = 'n_averaged'
NO_WEIGHTS = ('total_ops', 'total_params', '_extra_state')
COUNTER = 'num_batches_tracked'

# Where detectors and their backbones (`detector.py`) have the model.
OF_DETECTORS = ('backbone', 'net')

MOST_NESTED = 100


def unwrap(
    checkpoint: Any, where: str = 'the checkpoint', whole: bool = False, part: str | None = None
) -> dict[str, torch.Tensor]:
    """The state dict inside a loaded checkpoint.

    Args:
        checkpoint: The object in the file.
        where: Its name in error messages.
        whole: See `read_checkpoint`.
        part: See `read_checkpoint`.

    Raises:
        CheckpointError: If no state dict is found, or several and `part` names none of them.
    """
    if part is not None:
        checkpoint = _named_part(checkpoint, part, where)
    checkpoint, under = open_wrappers(checkpoint, where)
    if under:
        _logger.info('Using %s of %s.', shown(under), where)
    if not isinstance(checkpoint, dict) or not checkpoint:
        kind = 'nothing' if isinstance(checkpoint, dict) else f'an object of type {type(checkpoint).__name__}'
        raise CheckpointError(f'{where} holds {kind}, not a state dict.')
    state_dict = _weights(checkpoint, where)
    others = [k for k, v in state_dict.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if others:
        raise CheckpointError(
            f'{where} is not a state dict: {first_few(others)} are not named tensors. '
            f'A state dict is looked for at the top or under {", ".join((*PLAIN, *AVERAGED))} and the like; '
            '--part NAME (part=) names another place.'
        )
    odd = [
        k for k, v in state_dict.items() if v.layout != torch.strided or v.is_meta or v.is_quantized or v.is_complex()
    ]
    if odd:
        raise CheckpointError(
            f'{where} holds {first_few(odd)} as sparse, quantized, complex or empty (meta) tensors: save plain ones.'
        )
    _check_sharing(state_dict.values(), where)
    stripped = _strip_unlisted(_strip_prefixes({k: _plain(k, v) for k, v in state_dict.items()}), where)
    return stripped if whole else _one_model(stripped, where)


def _check_sharing(tensors: Collection[torch.Tensor], where: str) -> None:
    """Tied weights share their numbers; a copy of each must not take many times the memory of the file."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if sum(tensor.nbytes for tensor in tensors) > MOST_GROWTH * sum(storages.values()):
        raise CheckpointError(
            f'{where} holds the same numbers under so many names that they would take more than {MOST_GROWTH} times '
            'its size: save each tensor once.'
        )


def open_wrappers(checkpoint: Any, where: str = 'the checkpoint') -> tuple[Any, str]:
    """The object inside all wrappers, and the keys that lead to it, such as 'model.state_dict'.

    Raises:
        CheckpointError: If several keys could be meant, or one leads back to itself.
    """
    opened: list[str] = []
    seen: set[int] = set()
    while (key := _wrapper(checkpoint, where, opened)) is not None:
        if id(checkpoint) in seen or len(opened) == MOST_NESTED:
            nested = 'contains itself' if id(checkpoint) in seen else f'is nested in more than {MOST_NESTED} levels'
            raise CheckpointError(f'{where} {nested} under {shown(".".join(opened))}: save its state dict alone.')
        seen.add(id(checkpoint))
        opened.append(key)
        checkpoint = checkpoint[key]
    return checkpoint, '.'.join(opened)


def _wrapper(checkpoint: Any, where: str, opened: list[str], compare: bool = True) -> str | None:
    """The key to open next; None where the state dict is reached, or nothing is found."""
    keys = _parts(checkpoint) or _unlisted(checkpoint)
    if len(keys) == 1:
        keys += _twins(checkpoint, keys[0])
    if len(keys) < 2:
        return next(iter(keys), None)
    if 'model' in keys and PLAIN_WEIGHTS_COUNT in checkpoint['model']:
        return 'model'
    if len(keys) == 2 and keys[0] in AVERAGED and keys[1] in PLAIN:
        return keys[0]
    # A part of another kind of model, such as a teacher, is none of those that could be meant.
    known = [key for key in keys if _is_known(checkpoint[key])] if compare else []
    if len(known) == 1:
        return known[0]
    raise _ask(where, ['.'.join([*opened, key]) for key in known or keys])


def _ask(where: str, parts: Iterable[str]) -> CheckpointError:
    named = first_few(parts, most=6)
    return CheckpointError(
        f'{where} has several parts that could be meant ({named}): name one with --part NAME (part=).'
    )


def _parts(checkpoint: Any) -> list[str]:
    """Known keys of a mapping that lead to tensors."""
    return [k for k in WRAPPERS if _leads_to_tensors(checkpoint.get(k))] if isinstance(checkpoint, dict) else []


def _unlisted(checkpoint: Any) -> list[str]:
    """Other keys of a mapping under which there is a model of the zoo, if there is no tensor beside it."""
    if not isinstance(checkpoint, dict) or any(isinstance(v, torch.Tensor) for v in checkpoint.values()):
        return []
    return [k for k, v in checkpoint.items() if isinstance(k, str) and _has_tensors(v) and _is_known(v)]


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())


def _twins(checkpoint: dict[Any, Any], key: str) -> list[str]:
    """Unknown keys under which there is the same model once more, such as the best of the training."""
    names = checkpoint[key].keys()
    others = [k for k, v in checkpoint.items() if isinstance(k, str) and k not in WRAPPERS and isinstance(v, dict)]
    return [k for k in others if k != key and checkpoint[k].keys() == names]


def _leads_to_tensors(value: Any) -> bool:
    """Whether there are tensors in a mapping, or under known keys of it, which may lead back to itself."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and id(value) not in seen and len(seen) < MOST_NESTED:
            if _has_tensors(value):
                return True
            seen.add(id(value))
            waiting += [value[k] for k in WRAPPERS if k in value]
    return False


def _is_known(part: Any) -> bool:
    """Whether a part is of a family of the zoo, or has several parts itself."""
    for _ in range(MOST_NESTED):
        try:
            key = _wrapper(part, '', [], compare=False)
        except CheckpointError:
            return True
        if key is None:
            break
        part = part[key]
    names = {k: v for k, v in part.items() if isinstance(k, str)} if isinstance(part, dict) else {}
    return find_key_map(_strip_prefixes(_rename(names))) is not None


def _named_part(checkpoint: Any, part: str, where: str) -> dict[Any, Any]:
    """What a checkpoint holds under a key, or under names that begin with it, inside as many wrappers as need be."""
    node, opened = checkpoint, list[str]()
    while isinstance(node, dict) and len(opened) < 10:
        found = _at(node, part)
        if found is not None:
            _logger.info('Using %s of %s.', shown('.'.join([*opened, part])), where)
            return found
        key = next(iter(_parts(node)), None) if len(_parts(node)) == 1 else _wrapper(node, where, opened)
        if key is None:
            break
        opened.append(key)
        node = node[key]
    tops = _tops(node if isinstance(node, dict) else {})
    known = [*_parts(checkpoint), *('.'.join([*opened, role]) for role in ROLES if role in tops)] or tops
    raise CheckpointError(f"{where} has no part '{shown(part)}', only {first_few(known, most=6) or 'tensors'}.")


def _at(node: dict[Any, Any], part: str) -> dict[Any, Any] | None:
    """What a mapping holds under a path of keys, under a prefix or under one after the other; None for nothing."""
    parts = part.split('.')
    for i in range(len(parts), 0, -1):
        inner, rest = node.get('.'.join(parts[:i])), '.'.join(parts[i:])
        found = (_at(inner, rest) if rest else inner) if isinstance(inner, dict) else None
        if found:
            return found
    names = {k: v for k, v in _rename(node).items() if isinstance(k, str)}
    for named in (_strip_prefixes(names, 'module.'), names):
        found = {k.removeprefix(f'{part}.'): v for k, v in named.items() if k.startswith(f'{part}.')}
        if found:
            return found
    return None


def _weights(checkpoint: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Without entries that are not weights, and without the names of wrapping modules."""
    kept = {k: _counter(k, v) for k, v in checkpoint.items() if not (isinstance(k, str) and _last(k) in NO_WEIGHTS)}
    if len(kept) < len(checkpoint):
        left_out = [k for k in checkpoint if k not in kept]
        _logger.info('%s: left out %d entries that are not weights: %s.', where, len(left_out), first_few(left_out))
    renamed = _rename(kept)
    if len(renamed) < len(kept):
        twice = [k for k in kept if k not in renamed]
        raise CheckpointError(f'{where} has {first_few(twice)} with and without the names of wrapping modules.')
    return renamed


def _rename(state_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    return {WRAPPED_INSIDE.sub('', k) if isinstance(k, str) else k: v for k, v in state_dict.items()}


def _counter(key: Any, value: Any) -> Any:
    """A counter of batches that was saved as a plain number is a tensor again."""
    is_number = isinstance(value, int | float) and isinstance(key, str) and _last(key) == COUNTER
    return torch.tensor(value) if is_number else value


def _last(key: str) -> str:
    return key.rpartition('.')[2]


def _plain(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without gradients and attributes; a counter that was saved as a float counts again."""
    tensor = tensor.detach()
    if _last(key) == COUNTER and tensor.is_floating_point():
        return tensor.nan_to_num().long()
    return tensor


def _strip_prefixes(
    state_dict: dict[str, torch.Tensor], *prefixes: str, known: tuple[str, ...] = PREFIXES
) -> dict[str, torch.Tensor]:
    state_dict = {k: v for k, v in state_dict.items() if k != AVERAGING_COUNTER}
    averaged = {k: v for k, v in state_dict.items() if k.startswith('model_ema.')}
    if averaged and not prefixes:  # and plain ones in the same dict: the averaged weights win, as with wrappers
        state_dict = averaged
    while True:
        prefix = next((p for p in prefixes or known if state_dict and all(k.startswith(p) for k in state_dict)), None)
        if prefix is None:
            return state_dict
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}


def _strip_unlisted(state_dict: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Without any other prefix that all names have, if a model of the zoo is left."""
    prefix, rest = '', state_dict
    while rest and find_key_map(rest) is None:
        tops = {k.partition('.')[0] for k in rest}
        top = f'{tops.pop()}.'
        if tops or not all(k.startswith(top) for k in rest):
            return state_dict
        prefix, rest = prefix + top, {k.removeprefix(top): v for k, v in rest.items()}
    if prefix:
        _logger.info('%s: all names begin with %s, which was left out.', where, shown(prefix))
    return rest


def _one_model(state_dict: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The trained model alone, if a training wrapper was saved whole.

    Raises:
        CheckpointError: If it is an unknown one, with several models or with one of a family of the zoo in it.
    """
    for prefix, others in WHOLE_WRAPPERS.items():
        if any(k.startswith(prefix) for k in state_dict) and all(k.startswith((prefix, *others)) for k in state_dict):
            kept = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            if len(kept) < len(state_dict):
                _logger.info('Using %r alone, without the %d other tensors.', prefix, len(state_dict) - len(kept))
            return kept
    tops = _tops(state_dict)
    roles = [role for role in ROLES if role in tops]
    places = roles if find_key_map(state_dict) else tops
    if len(roles) > 1 or any(_is_known(v) for k, v in _models(state_dict).items() if k in places):
        raise _ask(where, [*roles, 'names without a prefix'] if find_key_map(state_dict) else tops)
    return state_dict


def _models(state_dict: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """What there is under the first parts of the names; the backbone of a detector is taken by `backbone_part`."""
    models: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        top, _, rest = key.partition('.')
        if rest and top not in OF_DETECTORS:
            models.setdefault(top, {})[rest] = tensor
    return models


def _tops(state_dict: Mapping[Any, Any]) -> dict[str, None]:
    """First parts of the names."""
    return dict.fromkeys(k.partition('.')[0] for k in state_dict if isinstance(k, str) and '.' in k)
