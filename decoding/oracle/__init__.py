"""The oracle: what every named tensor of Gemma 4 and its drafter should be, for authors of other engines.

Reading order: tiny, script (which drafts are tried), cases, adapter, adapters/ours, modules, record; then golden (files),
tolerance, compare, law_check, live, table; mutants, diagnose, confusion, mutants_page; write_texts, errors, cli.
"""
