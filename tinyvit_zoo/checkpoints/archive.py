"""Checks of a zip archive that torch's reader does not make: what is read is what was written, and no more than that.

torch ignores the checksums, so that one flipped bit is a wrong weight, and believes every size.
"""

import struct
import zipfile
from typing import BinaryIO

from ..common.text import shown

__all__ = ['MOST_GROWTH', 'RefusedError', 'check_archive']

MOST_GROWTH = 20
"""Times its own size that a file may grow when it is read. torch does not compress."""

BLOCK = 1 << 20
DOS_FOLDER = 0x10
END, END_64, LOCATOR_64 = struct.Struct('<4s4H2IH'), struct.Struct('<4sQ2H2I4Q'), struct.Struct('<4sIQI')


class RefusedError(ValueError):
    """A file is nothing that a program of good will writes; the message is the middle of a sentence."""


def check_archive(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> None:
    """Read every entry of a zip archive once, and compare it with its checksum and its size.

    Archives are also written without checksums (`torch.serialization.set_crc32_options`); then all of them are 0.

    Args:
        archive: Opened from `file`.
        file: Open file.
        size: Its size in bytes.

    Raises:
        RefusedError: If entries have equal names, are compressed in another way than torch can read, or grow to more
            than `MOST_GROWTH` times the file.
        zipfile.BadZipFile: If it is damaged; damaged bytes raise nearly anything else, too.
    """
    entries = archive.infolist()
    if len(entries) != _check_end(file, size):
        raise zipfile.BadZipFile('its table of contents has another length')
    _check_names([entry.filename for entry in entries])
    if not any(entry.CRC for entry in entries):
        for entry in entries:
            entry.CRC = None  # type: ignore[assignment]  # zipfile's own mark of an unknown checksum
    room = MOST_GROWTH * size
    for entry in entries:
        room -= _read_entry(archive, entry, room)


def _check_end(file: BinaryIO, size: int) -> int:
    """Number of entries, by a table of contents at the very end.

    Python's reader and torch's look for it in different ways; there it is the same for both.
    """
    file.seek(max(0, size - END.size - LOCATOR_64.size - END_64.size))
    tail = file.read()
    mark, *_, count, length, start, comment = END.unpack(tail[-END.size :])
    stop = size - END.size
    locator = tail[-END.size - LOCATOR_64.size : -END.size]
    if locator.startswith(b'PK\x06\x07'):
        stop -= LOCATOR_64.size + END_64.size
        _, _, at, _ = LOCATOR_64.unpack(locator)
        mark_64, *_, count, length, start = END_64.unpack(tail[: END_64.size])
        if at != stop or mark_64 != b'PK\x06\x06':
            raise zipfile.BadZipFile('its table of contents is not where it should be')
    if mark != b'PK\x05\x06' or comment or start + length != stop:
        raise zipfile.BadZipFile('its table of contents is not at its end')
    return count


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:  # torch's reader takes no notice of case
            raise RefusedError(f'it holds {shown(name)} twice')
        seen.add(name.lower())


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, room: int) -> int:
    """Size of an entry, after reading it in blocks."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f'{shown(entry.filename)} is compressed in a way that torch does not use')
    if entry.file_size and (entry.is_dir() or entry.external_attr & DOS_FOLDER):
        raise RefusedError(f'{shown(entry.filename)} is marked as a folder')  # for which torch leaves memory as it is
    length = 0
    with archive.open(entry) as content:
        while block := content.read(BLOCK):  # the checksum is compared at the end
            length += len(block)
            if length > room:
                raise RefusedError(f'it would grow to more than {MOST_GROWTH} times its size')
    if length != entry.file_size:
        raise zipfile.BadZipFile(f'{shown(entry.filename)} is shorter than the table of contents says')
    return length
