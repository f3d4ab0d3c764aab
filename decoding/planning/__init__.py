"""Models on paper: what a size is made of, and how fast it would run on a machine that you do not have.

    architecture.py   layers, K/V and parameters, from a configuration alone
    inspect_cli.py    `gemma4-mtp inspect`, which shows them
    devices.py        what devices can do, by their data sheets
    plan.py           memory, the time of each stage, both loops, the best draft length
    claims.py         published speed-ups beside what the model predicts
    plan_cli.py       `gemma4-mtp plan`, which shows these

The cost model is that of `decoding/bench`: `work.py` counts bytes and operations, `cost.py` makes speed-ups of times.
"""
