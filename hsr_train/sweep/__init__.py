"""Many runs as one study: Hydra's --multirun on Optuna, with trials that survive, resume and are shared.

`sweeper` is what Hydra calls; `space` reads what is searched; `worker` runs one trial after another; `study` keeps
them (`storage`), in a process of its own where runs are supervised (`agent`); `local` starts several workers.
"""
