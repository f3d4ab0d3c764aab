"""Assignments: stages as exercises, graded by their results, with the name of the mistake.

Reading order: assignment (the records), catalogue (one file an assignment, and how to add one), stub, make_key, key, compare,
child and given (a student's process), sandbox, source, grade, report; student, classes, stats, keys, pages, leaks, new, verify,
cli.  delegate is what a hole calls in a student's copy, error the one for mistakes of users.
"""
