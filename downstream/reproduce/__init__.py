"""The published tables of the four papers, row by row: what each needs, and what of it is measured here."""
