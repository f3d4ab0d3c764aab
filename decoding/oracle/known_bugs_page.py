"""The catalogue of mutants as text: on the terminal, and as the page `tutorials/reference/known_bugs.md`.

`gemma4-mtp oracle mutants` prints the list; with names, each of these mutants and its change; with --confusion, the page.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from decoding.oracle.confusion import Outcome, confusion
from decoding.oracle.diagnose import Diagnosis, described
from decoding.oracle.engine import OracleError
from decoding.oracle.known_bugs import CLASSES, EQUIVALENT, INEXPRESSIBLE, MUTANTS, NOT_IN_TEXT, Mutant, Seen

INTRODUCTION = """\
# Known bugs, as mutants of the reference

These bugs were reported in other engines. Each *mutant* is one of them, as a change of a line or two in one function of the
reference (`gemma4-mtp oracle mutants NAME` prints it; `decoding/oracle/known_bugs/` holds them all). When an engine's tensors
differ from the reference, the oracle computes the same stages with each mutant, and names the one that the engine follows.

*Effect* is the worst effect for a user: wrong text, which greedy decoding shows; wrong probabilities, which it does not show;
fewer accepted drafts, with the right distribution of the text; or nothing, because a norm cancels the mistake.

*Shows at* is the first tensor that differs, in the first of the two cases where one does. *Diagnosed* is the answer of
`diagnose` to the mutant's tensors in the cases E2B and 26B-A4B, with random noise of a tenth of the tolerance added: `named`
means this mutant and no other. *From results* is the answer for an engine that gives no inner tensors, only the results that
every engine has (logits, hidden states, tokens, counts). `unseen` there are bugs that only cost acceptance, that a norm
cancels, or that only the enumeration of the distribution finds (`oracle check --adapter` runs it). Other differences of a real
engine, above all a second bug, are not part of this table. Bugs have the numbers of the catalogue of public reports that the
mutants were made from; a mutant with neither number nor link is a slip of learners.

Written by `gemma4-mtp oracle mutants --confusion`.
"""
COLUMNS = ("mutant", "bugs", "mistake", "effect", "right", "seen in", "shows at", "diagnosed", "from results")


def print_mutants(names: Sequence[str] = (), *, with_confusion: bool = False) -> None:
    """Print what the command asks for.  Errors: OracleError for an unknown name."""
    if unknown := [name for name in names if name not in MUTANTS | EQUIVALENT]:
        raise OracleError(f"mutants: no mutant is called {unknown[0]}; `gemma4-mtp oracle mutants` lists them")
    if with_confusion:
        print("\n".join(page({outcome.mutant.name: verdicts_of(outcome) for outcome in confusion()})))
    elif names:
        print("\n\n".join(in_full(name) for name in names))
    else:
        print("\n".join(short_list()))


def short_list() -> Iterator[str]:
    for rank, title in CLASSES.items():
        if of_class := [mutant for mutant in MUTANTS.values() if mutant.rank == rank]:
            yield f"{title}:"
            yield from (f"  {mutant.name:45}{', '.join(mutant.bugs) or '-':16}{mutant.what}" for mutant in of_class)
    yield "not bugs:"
    yield from (f"  {variant.name:45}{'':16}{variant.what}" for variant in EQUIVALENT.values())


def in_full(name: str) -> str:
    variant = (MUTANTS | EQUIVALENT)[name]
    head = described(variant) if isinstance(variant, Mutant) else f"{name}, not a bug: {variant.what}"
    return f"{head}\n  change:  {variant.function}\n{variant.diff()}"


# -- the page ----------------------------------------------------------------------------------------------------------


class Verdicts(NamedTuple):
    """ "named", "named with others: a, b", "missed", "unseen", "mistaken for: a"."""

    from_all: str
    from_results: str


def verdicts_of(outcome: Outcome) -> Verdicts:
    return Verdicts(verdict(outcome.mutant, outcome.diagnosis), verdict(outcome.mutant, outcome.from_results))


def verdict(mutant: Mutant, diagnosis: Diagnosis) -> str:
    named = [match.name for match, _ in diagnosis.matches]
    others = ", ".join(name for name in named if name != mutant.name)
    if mutant.name in named:
        return f"named with others: {others}" if others else "named"
    if not diagnosis.reference.off:
        return "unseen"
    return f"mistaken for: {others}" if others else "missed"


def page(verdicts: Mapping[str, Verdicts]) -> Iterator[str]:
    yield INTRODUCTION
    yield from summary(verdicts)
    for rank, title in CLASSES.items():
        yield from ("", f"## {rank}. {title[0].upper()}{title[1:]}", "")
        if rank in NOT_IN_TEXT:
            yield f"No mutant: {NOT_IN_TEXT[rank]}."
        else:
            of_class = [mutant for mutant in MUTANTS.values() if mutant.rank == rank]
            rows = (row(mutant, verdicts[mutant.name]) for mutant in of_class)
            yield from table(COLUMNS, rows)
    yield from ("", "## Bugs without a mutant", "")
    reasons = ((bug, CLASSES[it.rank], it.what, it.seen_in, it.why) for bug, it in INEXPRESSIBLE.items())
    yield from table(("bug", "class", "what", "seen in", "why not"), reasons)
    yield from ("", "## Not bugs", "", "These variants are correct, and are not flagged.", "")
    yield from table(("variant", "bugs", "what", "taken for a bug in"), map(variant_row, EQUIVALENT))


def summary(verdicts: Mapping[str, Verdicts]) -> Iterator[str]:
    classes = len({mutant.rank for mutant in MUTANTS.values()})
    bugs = len({bug for mutant in MUTANTS.values() for bug in mutant.bugs})
    others = [bool(mutant.seen_in) for mutant in MUTANTS.values() if not mutant.bugs]
    yield (
        f"{len(verdicts)} mutants: of {bugs} numbered bugs in {classes} classes, of {others.count(True)} other reported bugs, "
        f"and {others.count(False)} slips without a public report."
    )
    for given, column in (("all tensors", 0), ("results alone", 1)):
        count = Counter(of_mutant[column].split(":")[0] for of_mutant in verdicts.values())
        kinds = ("named", "named with others", "unseen", "missed", "mistaken for")
        yield f"From {given}: " + ", ".join(f"{count[kind]} {kind}" for kind in kinds).replace(" for", "") + "."


def row(mutant: Mutant, verdicts: Verdicts) -> tuple[str, ...]:
    links = ", ".join(map(link, mutant.seen_in))
    bugs = ", ".join(mutant.bugs)
    shows_at = f"`{mutant.shows_at}`"
    return f"`{mutant.name}`", bugs, mutant.what, mutant.effect, mutant.fix, links, shows_at, *verdicts


def verdicts_on(page: str) -> dict[str, Verdicts]:
    """The last two columns of a page."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): Verdicts(*cells[-2:]) for cells in rows if cells[0].strip("`") in MUTANTS}


def variant_row(name: str) -> tuple[str, ...]:
    return (
        f"`{name}`",
        ", ".join(EQUIVALENT[name].bugs),
        EQUIVALENT[name].what,
        ", ".join(map(link, EQUIVALENT[name].seen_in)),
    )


def link(seen: Seen) -> str:
    return f"[{seen.engine}]({seen.link})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    yield line(header)
    yield "|" + "---|" * len(header)
    yield from map(line, rows)
