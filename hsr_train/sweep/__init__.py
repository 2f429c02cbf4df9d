"""Many runs as one study: Hydra's --multirun on Optuna, with trials that survive, resume and are shared.

From the words to the workers, in the command's process, without optuna:
    sweeper     what Hydra calls: plan, workers, last lines
    plan        checks everything (`space`, `objectives`, `varied`, `warm`, `pruning`, `after`), says what the study is
    checking    mode=check: each point's report under its name
    local       sweep.jobs: several workers here
    own_runs    whose the runs in a sweep's folder are
    worker      takes a trial, runs it as any run, tells what it came to (`ends`)
    disk        which training states it keeps, and whether what is to come will fit
    watch       shows the study each epoch from the process that trains, and hears whether to end there

The study, in a process of its own (`agent`) where runs are forked:
    study       its trials: claimed, reported, told (`takeover`: whose they are); `study_types` is what goes between
    signature   what it is signed with, so that no other search goes on with it
    foreseen    what it would be refused for, for mode=check
    points      its space and the points that no sampler chooses (`previous`: another sweep's best)
    samplers    and `pruners`: Optuna's, by name
    storage     and `urls`: where it is kept
    stages      what comes after the search (`repeated`: mean and deviation over seeds)
    over        which trials are over, and the best of them, for `disk`

What shows it, there too:
    reporting   writes all of it after each trial: `results` (leaderboard.csv, best.yaml), `report` with `figures`,
                `progress` (lines and table), from `summary`, the study as plain values
"""
