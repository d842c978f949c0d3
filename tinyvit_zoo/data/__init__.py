"""Images by name: where data sets come from, and how they are read, split, cropped and augmented."""
