"""What makes the figures: nets, data, baselines, and the checks of the committed artifacts."""
