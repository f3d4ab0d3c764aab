"""Wrong answers to the exercises, one file for each tutorial; `test_exercises.py` says what is in them."""
