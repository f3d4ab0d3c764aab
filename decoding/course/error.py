"""The error for what a teacher or a student can set right; the command shows it as one line."""


class CourseError(ValueError):
    pass
