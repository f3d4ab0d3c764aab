"""Models on paper: what a size is made of, and how fast it would run on a machine that you do not have.

architecture.py   `gemma4-mtp inspect`: layers, K/V and parameters, from a configuration alone
inspect_cli.py    ... its command
"""
