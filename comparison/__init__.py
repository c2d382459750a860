"""Studies: paired runs over recipes, learning rates and seeds; their analysis, plots and report."""
