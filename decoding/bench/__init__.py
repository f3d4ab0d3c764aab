"""`gemma4-mtp bench`: how fast a pair is on this machine, stage by stage, and how far from what the machine could do.

Reading order: subject (what is measured), stages (one stage, timed), loops (whole generations, timed), work (what a stage
cannot do without), machine (what there is to do it with), cost (what the speed-up should be), contexts, peer (transformers,
side by side), prefill, heads, experts (measurements of their own); then measure, which puts them together, spread, report,
plot and cli.
"""
