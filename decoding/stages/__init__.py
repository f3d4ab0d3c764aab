"""The stages of a round, one a file, in the order in which they run.

prefill.py       0  read the prompts, draw the first token
draft.py         1  the drafter proposes gamma tokens
verify.py        2  one pass of the target over all of them
accept.py        3  rejection sampling, draft by draft
accept_block.py  3  another method: block verification
emit.py          4  up to an EOS or the end of the budget
rollback.py      5  forget the rejected drafts
"""
