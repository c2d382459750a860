"""Tasks of the lm-evaluation-harness over local files; `python -m examples.lm_eval` writes the files."""
