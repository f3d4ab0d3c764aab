"""The catalogue of mutants for people: on the terminal, and as `tutorials/oracle_mutants.md`.

`gemma4-mtp oracle mutants` prints the list, with names one mutant each with its change, and with --confusion the page.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from decoding.oracle.confusion import Outcome, confusion
from decoding.oracle.diagnose import described
from decoding.oracle.errors import OracleError
from decoding.oracle.mutants import CLASSES, EQUIVALENT, INEXPRESSIBLE, MUTANTS, NOT_IN_TEXT, Mutant, Seen

INTRODUCTION = """\
# Known bugs, as mutants of the reference

Other engines have had these bugs. Each *mutant* is one of them, as a change of a line or two in one function of the
reference (`gemma4-mtp oracle mutants NAME` shows it; `decoding/oracle/mutants/` holds them all). When an engine's tensors
differ from the reference, the oracle computes the same stages with each mutant, and names the one that the engine follows.

*Shows at* is the first tensor to differ, in the first of the two cases where it does. *Diagnosed* is what `diagnose` makes
of the mutant's tensors in the cases E2B and 26B-A4B when it is told nothing else, with random noise of a tenth of the
tolerance on top: `named` means this mutant and no other. Bugs are numbered as in the catalogue of public reports that the
mutants were made from; a mutant without a number is a slip that learners make.

Written by `gemma4-mtp oracle mutants --confusion`.
"""


def print_mutants(names: Sequence[str] = (), *, with_confusion: bool = False) -> None:
    """What the command prints.  Errors: OracleError for a name that no variant has."""
    if unknown := [name for name in names if name not in MUTANTS | EQUIVALENT]:
        raise OracleError(f"mutants: no mutant is called {unknown[0]}; `gemma4-mtp oracle mutants` lists them")
    if with_confusion:
        print("\n".join(page(confusion())))
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


def page(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield INTRODUCTION
    yield from summary(outcomes)
    for rank, title in CLASSES.items():
        yield from ("", f"## {rank}. {title[0].upper()}{title[1:]}", "")
        if rank in NOT_IN_TEXT:
            yield f"No mutant: {NOT_IN_TEXT[rank]}."
        elif of_class := [outcome for outcome in outcomes if outcome.mutant.rank == rank]:
            yield from table(
                ("mutant", "bugs", "mistake", "right", "seen in", "shows at", "diagnosed"), map(row, of_class)
            )
    yield from ("", "## Bugs without a mutant", "")
    reasons = ((bug, CLASSES[it.rank], it.what, it.seen_in, it.why) for bug, it in INEXPRESSIBLE.items())
    yield from table(("bug", "class", "what", "seen in", "why not"), reasons)
    yield from ("", "## Not bugs", "", "These variants are right, and are not flagged.", "")
    yield from table(("variant", "what", "taken for a bug in"), map(variant_row, EQUIVALENT))


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    verdicts = Counter(outcome.verdict.split()[0] for outcome in outcomes)
    classes = len({outcome.mutant.rank for outcome in outcomes})
    bugs = len({bug for outcome in outcomes for bug in outcome.mutant.bugs})
    killed = sum(bool(outcome.diagnosis.reference.off) for outcome in outcomes)
    yield f"{len(outcomes)} mutants for {bugs} bugs of {classes} classes; {killed} are seen."
    yield f"{verdicts['named']} are named alone, {verdicts['among']} together with others that no tensor here tells from them,"
    yield f"{verdicts['missed'] + verdicts['unseen']} are missed, {verdicts['mistaken']} taken for others."


def row(outcome: Outcome) -> tuple[str, ...]:
    mutant = outcome.mutant
    others = [name for name in outcome.named if name != mutant.name]
    verdict = outcome.verdict + (f": {', '.join(others)}" if others else "")
    links = ", ".join(map(link, mutant.seen_in))
    return f"`{mutant.name}`", ", ".join(mutant.bugs), mutant.what, mutant.fix, links, f"`{mutant.shows_at}`", verdict


def variant_row(name: str) -> tuple[str, ...]:
    return f"`{name}`", EQUIVALENT[name].what, ", ".join(map(link, EQUIVALENT[name].seen_in))


def link(seen: Seen) -> str:
    return f"[{seen.engine}]({seen.link})"


def table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield line(header)
    yield "|" + "---|" * len(header)
    yield from map(line, rows)
