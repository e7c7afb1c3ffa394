"""*Chaotic Dynamics*: how its results are read, drawn and judged."""
