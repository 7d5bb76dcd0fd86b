"""Floor 5: the toy laboratory. Hundreds of runs as one batch, on CPU, with exact metrics."""
