"""What a user can get wrong is one line and exit code 2.  (In this process: nothing here runs a submission to its end.)"""

import pytest

from decoding.cli.main import main
from decoding.course.catalogue import NAMES
from decoding.course.classes import submissions_in
from decoding.course.error import CourseError
from decoding.course.make_key import BATTERIES, battery_of


def refused(capsys, *arguments) -> str:
    assert main(["course", *map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("gemma4-mtp: error: ")
    return told[0]


BAD_FILES = {
    "a09_notebook.ipynb": (b"{}", "got a notebook"),
    "a09_empty.py": (b"\n \n", "the file is empty"),
    "a09_utf16.py": ("x = 1".encode("utf-16"), "UTF-8"),
    "a09_latin.py": ("x = 'é'".encode("latin-1"), "expected text in UTF-8"),
    "a09_text.txt": (b"x = 1", "its name ending in .py"),
    "mine.py": (b"x = 1", "its name does not tell the assignment"),
    "a08_none.py": (b"x = 1", "its name does not tell the assignment"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_submission_that_is_no_python_file_is_refused(name, tmp_path, capsys):
    content, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert reason in refused(capsys, "grade", tmp_path / name)


def test_folders_without_submissions_are_refused(tmp_path, capsys):
    assert "expected submissions" in refused(capsys, "grade", tmp_path)
    assert "no such file" in refused(capsys, "grade", tmp_path / "none")
    (tmp_path / "a09_folder.py").mkdir()
    assert "expected submissions" in refused(capsys, "grade", tmp_path)


def test_check_outside_of_a_students_repository_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "expected to be in a student's repository" in refused(capsys, "check")
    (tmp_path / "course.json").write_text("{")
    assert "expected the record of a course" in refused(capsys, "check")


def test_unknown_assignments_and_bad_files_are_named(tmp_path, capsys, monkeypatch):
    assert "assignment 99: expected one of 01" in refused(capsys, "verify", "99")
    assert "it exists; name a new directory" in refused(capsys, "new", tmp_path)
    (tmp_path / "r.json").write_text('[{"format": "other"}]')
    assert "expected reports of `course grade --json`" in refused(capsys, "stats", tmp_path / "r.json")
    assert "No such file" in refused(capsys, "verify", "03", "--secret-file", tmp_path / "none")
    assert "--jobs" in refused(capsys, "grade", tmp_path / "r.json", "--assignment", "3", "--jobs", "0")


def test_a_broken_record_is_named(capsys, monkeypatch):
    monkeypatch.setattr("decoding.course.catalogue.NAMES", (*NAMES, "a98_broken"))
    assert "its record a98_broken.py cannot be read" in refused(capsys, "verify", "98")


def test_the_list_names_every_assignment(capsys):
    assert main(["course", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES)


def test_a_class_is_files_or_a_folder_a_student(tmp_path):
    for name in ("ada/a09_accept.py", "bob/solutions/a09_accept.py", "bob/a03_ring.py", "eve/notes.txt", "a03_zoe.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    found = {(each.student, each.number) for each in submissions_in(tmp_path, None)}
    assert found == {("ada", "09"), ("bob", "09"), ("bob", "03"), ("a03_zoe", "03")}
    assert {each.student for each in submissions_in(tmp_path, "09")} == {"ada", "bob", "a03_zoe"}
    with pytest.raises(CourseError):
        submissions_in(tmp_path / "eve", None)


def test_a_secret_decides_who_gets_which_inputs():
    students = [f"student {i}" for i in range(60)]
    one, other = ([battery_of(secret, student) for student in students] for secret in ("a", "b"))
    assert set(one) == set(range(BATTERIES)) and one != other and one == [battery_of("a", s) for s in students]
