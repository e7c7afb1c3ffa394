"""Figures and claims, a folder a paper, from results/*.json alone; only figures.py opens it."""
