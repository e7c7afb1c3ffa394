"""*Stochastic Collapse*: how its results are read, drawn and judged."""
