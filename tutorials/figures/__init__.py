"""The tutorials' pictures: one file for each tutorial, and `style.py` for all.

A picture is a function that takes numbers and returns a matplotlib figure.  Notebooks call it in one line.
"""
