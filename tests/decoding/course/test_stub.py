"""Holes, the file to fill in, and the search for what would tell an answer."""

import ast
import textwrap

import pytest

from decoding.course.assignment import Cut
from decoding.course.catalogue import assignments
from decoding.course.error import CourseError
from decoding.course.leaks import answer_of, leaks, squeezed
from decoding.course.new import ROOT
from decoding.course.pages import DIRECTORY, page
from decoding.course.stub import found, module_of, solution_file, with_holes

SOURCE = textwrap.dedent('''
    import functools


    @functools.cache
    def f(x: int) -> int:
        """What f does."""
        return x * 2  # the answer


    class C:
        def f(self):
            return 3

        def g(self):
            return 4
''')

every = pytest.mark.parametrize("assignment", assignments(), ids=lambda a: a.name)


def test_a_hole_keeps_decorator_signature_and_docstring():
    text = with_holes(
        SOURCE, {"f": Cut(function="m.f", body="return 1"), "C.f": Cut(function="m.C.f", body="x = 1\nreturn x")}
    )
    assert (
        "answer" not in text
        and '@functools.cache\ndef f(x: int) -> int:\n    """What f does."""\n    return 1\n' in text
    )
    assert "    def f(self):\n        x = 1\n        return x\n" in text and "return 4" in text
    ast.parse(text)


def test_a_removed_function_is_gone_with_its_decorators():
    text = with_holes(SOURCE, {"f": None})
    assert "functools.cache" not in text and "def f(x" not in text and "class C" in text


def test_a_function_that_is_not_there_is_named():
    with pytest.raises(CourseError, match="h: no such function"):
        found(SOURCE, "h")
    with pytest.raises(CourseError, match=r"elsewhere\.f: no such function"):
        module_of("elsewhere.f", ROOT)


@every
def test_the_file_to_fill_in_compiles_and_every_function_says_that_it_is_not_written(assignment):
    names: dict = {}
    exec(solution_file(assignment), names)
    for hole in assignment.holes:
        with pytest.raises(NotImplementedError, match=f"assignment {assignment.number}: {hole.name}"):
            names[hole.name](*range(len(hole.parameters)))


@every
def test_the_page_is_that_of_the_record(assignment):
    assert (DIRECTORY / f"{assignment.name}.md").read_text(encoding="utf-8") == page(assignment)
    assert f"]({assignment.name}.md)" in (DIRECTORY / "README.md").read_text(encoding="utf-8")


@every
def test_page_and_file_tell_no_piece_of_the_answer(assignment):
    answer = answer_of(assignment, ROOT)
    assert len(answer) >= 2
    for text in (page(assignment), solution_file(assignment), *(m.says for m in assignment.misconceptions)):
        assert not [piece for piece in answer if piece in squeezed(text)]


def test_a_leak_is_found_in_another_layout(tmp_path):
    accept = next(each for each in assignments() if each.number == "09")
    (tmp_path / "notes.md").write_text("rest = jnp.maximum( target_probs\n   - draft_probs, 0 )")
    found = leaks([accept], ROOT, tmp_path)
    assert [leak.file for leak in found] and "notes.md tells a part of assignment 09" in str(found[0])
