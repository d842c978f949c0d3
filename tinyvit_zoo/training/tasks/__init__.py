"""Tasks that `training.loop` trains: a forward pass and the dictionary of its losses each, on timm's `TrainingTask`."""
