"""Runs as jobs: submitted to Slurm or to this machine, judged, started again, watched.

request.py      what is asked for: site, layout and data are checked before anything is queued
snapshot.py     the code and the configuration a job runs, safe from later edits
executor.py     submitit's executor with our batch script
submit.py       the way from a configuration to a queued job
rank.py         what each process of a job does
place.py, rendezvous.py, signals.py, preflight.py   its parts, in this order
attempt.py      what the ranks of one attempt leave for who judges it
verdict.py      how an attempt ended, and who is to blame
decide.py       on the batch host, after the ranks: finish, start again or give up
local.py        the same life without Slurm
runs.py, queue.py, standing.py   which runs there are, what Slurm knows of them, where they stand
status.py, logs.py, cancel.py   watching
"""
