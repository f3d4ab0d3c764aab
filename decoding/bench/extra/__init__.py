"""Measurements of their own.  Each but the first has its option of `gemma4-mtp bench`.

prefill.py   reading a long prompt; part of every run
peer.py      --against: transformers on the same weights
contexts.py  --contexts: time and memory over the length of the context
heads.py     --heads: the drafter's clustered head against the dense one
experts.py   --experts: all experts for every token, or each token's own
"""
