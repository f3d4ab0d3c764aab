"""The command `gemma4-mtp`.

main.py      arguments, help, exit codes
generate.py  `generate`: validate and load everything, then generate and print
chat.py      `chat`: a conversation whose cache stays between turns
console.py   text as it comes, with colours or marks, and the tables after it
devices.py   `--devices` and `--hosts`
processors.py  penalties, min-p and logit bias as options
timings.py   what `generate --timings` measures

`bench`, `oracle` and `trace` are in their own packages, which are imported only when one of them is asked for.
"""
