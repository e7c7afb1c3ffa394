"""*Sparse Features*: how its results are read, drawn and judged."""
