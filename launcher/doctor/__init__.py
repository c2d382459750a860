"""`steadytrain doctor`: is all there that training needs here? Each group of checks is a process of its own.

A group is a module with `check(asked) -> Iterator[Finding]`. What hangs or dies in it, driver, network disk or Slurm,
costs that group its answer and nothing else (`groups.py`).
"""
