"""Images by name: where sets come from, how they are read, split, cropped and put into batches."""
