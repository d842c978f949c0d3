"""Where numbers come from: each source once, named by a key that the numbers carry."""

import re

__all__ = ['Sources']


class Sources:
    """A table that grows: key -> words and address."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, str | None]] = {}

    def key(self, text: str, url: str | None = None) -> str:
        """The key of a source, made of its words; entered if it is new."""
        entry = dict(text=text, url=url)
        stem = re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60]
        key, number = stem, 2
        while self.table.get(key, entry) != entry:
            key, number = f'{stem}-{number}', number + 1
        self.table[key] = entry
        return key
