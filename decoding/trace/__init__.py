"""`gemma4-mtp trace`: one HTML file on which a person steps through the rounds of a real generation.

place.py       what is recorded of one place of the text: both distributions, and draws from them
record.py      run the stages of each round one by one, and write down what they did
tokens.py      texts of tokens, bytes that are no character among them
schema.json    the format of a trace, for engines that write one
check.py       a trace from a file, checked
page.py        the page from a trace: page.html, page.css and page.js in one file
cli.py         the command
screenshot.py  pictures of a page, by a browser

A trace is plain JSON in between, so the page shows any engine's.  tutorials/reference/trace_format.md explains it.
"""
