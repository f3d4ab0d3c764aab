"""Read a submission.  Whatever is not a Python file in UTF-8 is refused in one sentence."""

import tokenize
from pathlib import Path

from decoding.course.error import CourseError

MAX_BYTES = 1 << 20


def read_source(file: Path) -> bytes:
    """The file's bytes.  Errors: CourseError for a folder, a notebook, an empty file or one that is not text."""
    if file.is_dir():
        raise CourseError(f"{file}: expected a Python file, got a folder")
    if file.suffix == ".ipynb":
        raise CourseError(f"{file}: expected a Python file, got a notebook; copy the functions into a .py file")
    if file.suffix != ".py":
        raise CourseError(f"{file}: expected a Python file, its name ending in .py")
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise CourseError(f"{file}: expected a Python file of at most {MAX_BYTES >> 20} MiB, got {size} bytes")
        source = file.read_bytes()
    except OSError as error:
        raise CourseError(f"{file}: {error.strerror or error}") from error
    if not source.strip():
        raise CourseError(f"{file}: the file is empty")
    try:
        with open(file, "rb") as stream:
            encoding, _ = tokenize.detect_encoding(stream.readline)
        text = source.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        raise CourseError(f"{file}: expected text in UTF-8; save it in that encoding") from None
    if "\0" in text:
        raise CourseError(f"{file}: expected text in UTF-8, got zero bytes (is it UTF-16?); save it as UTF-8")
    return source
