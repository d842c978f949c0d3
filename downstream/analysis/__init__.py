"""What models compute, layer by layer: representations compared, attention, frequencies. One small file an analysis."""
