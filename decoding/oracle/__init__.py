"""The oracle: what every named tensor of Gemma 4 and its drafter should be, for authors of other engines.

Reading order: tiny, cases, adapter, adapters/ours, record; then golden (files), compare, law_check, live;
mutants, diagnose, confusion; cli.
"""
