"""What no paper has: extracted networks, forecasts of collapse, and its causes."""
