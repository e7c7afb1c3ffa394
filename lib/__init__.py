"""What core and the scripts stand on: data sets, teams of processes, run folders, results, the command line.

Nothing here knows a network or an experiment.
"""
