"""The oracle: the correct value of every named tensor of Gemma 4 and its drafter, for authors of other engines.

Reading order: tiny, script (which drafts are tried), cases, engine (what an adapter implements), adapters/ours, record;
then golden (files), tolerance, compare, law_check, live, table; known_bugs, diagnose, confusion, known_bugs_page;
write_texts, cli.  Without the folder `known_bugs` everything works but `mutants` and `check --diagnose`.
"""
