"""JSON files in which a changed byte does not go unnoticed: one spelling only, and a hash of what they say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import EvaluationError
from ..common.files import write_whole
from ..common.hashes import json_hash
from ..common.text import reason

__all__ = ['read_sealed', 'write_sealed']

SEAL = 'sha256'


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write values that JSON can hold. Raises: EvaluationError: If the file cannot be written."""
    write_whole(path, _spelled(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        EvaluationError: If the file cannot be read, or any byte of it was changed.
    """
    try:
        data = path.read_bytes()
        content = json.loads(data)
        content.pop(SEAL)
        whole = _spelled(content) == data
    except OSError as e:
        raise EvaluationError(f'{path} cannot be read ({reason(e)}).') from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise EvaluationError(f'{path} was changed since it was written, or is cut short: copy it again.')
    return content


def _spelled(content: Mapping[str, Any]) -> bytes:
    return (json.dumps({**content, SEAL: json_hash(content)}, indent=1, sort_keys=True) + '\n').encode()
