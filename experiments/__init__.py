"""What the scripts are made of: sweeps of trainings, closed forms, toy problems, forecasts."""
