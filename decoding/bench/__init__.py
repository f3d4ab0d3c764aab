"""`gemma4-mtp bench`: how fast a pair runs on this machine, stage by stage, and how far that is from the machine's limits.

Reading order: subject (the model under test), stages (one stage, timed), loops (whole generations, timed), work (what a stage
needs at least), machine (what the machine can do), cost (what the speed-up should be), noise (whether
other programs disturb); measure puts them together, and report,
plot and cli are its surface.  The folder extra has measurements of their own; generate_timing is what `generate --timings`
measures.

Everything runs in the form that `decoding.generate` runs by default: models with twins, options with fast kernels.
"""
