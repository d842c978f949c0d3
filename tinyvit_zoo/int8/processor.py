"""Whether a processor multiplies 8-bit numbers faster than floats."""

from pathlib import Path

__all__ = ['has_int8_instructions']

INSTRUCTIONS = frozenset(('avx512_vnni', 'avx_vnni', 'avx_vnni_int8', 'amx_int8', 'i8mm', 'asimddp'))
"""Flags of x86 and Arm processors, as Linux names them."""


def has_int8_instructions(cpuinfo: Path = Path('/proc/cpuinfo')) -> bool | None:
    """Whether this processor has dot products of 8-bit numbers; None where the system does not say."""
    try:
        text = cpuinfo.read_text(errors='replace')
    except OSError:
        return None
    flags = {
        flag
        for line in text.splitlines()
        if line.partition(':')[0].strip() in ('flags', 'Features')
        for flag in line.partition(':')[2].split()
    }
    return bool(flags & INSTRUCTIONS) if flags else None
