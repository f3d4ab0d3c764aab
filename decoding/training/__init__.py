"""Train a pair on one's own text, or a drafter for a target: the commands `gemma4-mtp train` and `train-drafter`.

text.py        files to documents, held-out ones among them; a tokenizer; token ids
recipes.py     everything that determines a pair except its text, in two sizes
pair.py        the stages: target, text by the target, drafter
acceptance.py  how good the result is on held-out text
export.py      the finished directory, replaced as a whole
curves.py      a picture of the training logs
cli.py         arguments and help
"""
