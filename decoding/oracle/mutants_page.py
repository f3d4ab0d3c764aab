"""The catalogue of mutants for people: on the terminal, and as `tutorials/oracle_mutants.md`.

`gemma4-mtp oracle mutants` prints the list, with names one mutant each with its change, and with --confusion the page.
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

Other engines have had these bugs. Each *mutant* is one of them, as a change of a line or two in one function of the
reference (`gemma4-mtp oracle mutants NAME` shows it; `decoding/oracle/mutants/` holds them all). When an engine's tensors
differ from the reference, the oracle computes the same stages with each mutant, and names the one that the engine follows.

*Effect* is the worst that a user meets: wrong text, which greedy decoding shows; wrong probabilities, which it does not;
fewer accepted drafts, where text and law are right and only come later; or nothing, where a norm makes it good.

*Shows at* is the first tensor to differ, in the first of the two cases where it does. *Diagnosed* is what `diagnose` makes
of the mutant's tensors in the cases E2B and 26B-A4B when it is told nothing else, with random noise of a tenth of the
tolerance on top: `named` means it and no other. *From results* is the same where an engine gives no inner tensors, only
what every engine has (logits, hidden rows, tokens, counts); `unseen` there are bugs that cost acceptance alone, that a norm
makes good, or that only an enumeration of the law finds (`oracle check --adapter` does that). A real engine's other
differences, a second bug above all, are not part of this table. Bugs are numbered as in the catalogue of public reports
that the mutants were made from; one with neither number nor link is a slip that learners make.

Written by `gemma4-mtp oracle mutants --confusion`.
"""
COLUMNS = ("mutant", "bugs", "mistake", "effect", "right", "seen in", "shows at", "diagnosed", "from results")


def print_mutants(names: Sequence[str] = (), *, with_confusion: bool = False) -> None:
    """What the command prints.  Errors: OracleError for a name that no variant has."""
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
    yield from ("", "## Not bugs", "", "These variants are right, and are not flagged.", "")
    yield from table(("variant", "bugs", "what", "taken for a bug in"), map(variant_row, EQUIVALENT))


def summary(verdicts: Mapping[str, Verdicts]) -> Iterator[str]:
    classes = len({mutant.rank for mutant in MUTANTS.values()})
    bugs = len({bug for mutant in MUTANTS.values() for bug in mutant.bugs})
    others = [bool(mutant.seen_in) for mutant in MUTANTS.values() if not mutant.bugs]
    yield (
        f"{len(verdicts)} mutants: of {bugs} numbered bugs in {classes} classes, of {others.count(True)} reported elsewhere, "
        f"and {others.count(False)} slips that nobody has reported."
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
    """The last two columns, read back."""
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
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield line(header)
    yield "|" + "---|" * len(header)
    yield from map(line, rows)
