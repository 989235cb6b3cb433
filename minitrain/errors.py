"""What can go wrong for a user, each kind with the exit code that scripts and schedulers read.

A message has three parts, `WHAT; WHERE; WHAT TO DO`, and is printed once for a whole job as one line that
begins `minitrain: error:` (several problems of a configuration: a count, then one indented line each).
"""

from typing import NamedTuple

LONGEST = 1000  # letters of a part of a message


class Problem(NamedTuple):
    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.where}; {self.remedy}"


class MinitrainError(Exception):
    """Base of every error that is explained to the user in one line."""

    exit_code = 6
    known_everywhere = False  # true where every rank raises the same error: one of them speaks for all
    told_by: int | None = None  # where some ranks raise the same error: the one that speaks for them

    def __init__(self, what: str, where: str, remedy: str) -> None:
        self.problems = [Problem(what, where, remedy)]
        super().__init__(str(self.problems[0]))

    @classmethod
    def everywhere(cls, problems: list[Problem], exit_code: int) -> "MinitrainError":
        """The same error for every rank of a job."""
        error = cls(*problems[0])
        error.problems, error.exit_code, error.known_everywhere = problems, exit_code, True
        return error


class ConfigError(MinitrainError):
    """What the user asked for cannot be run. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        Exception.__init__(self, "; ".join(map(str, problems)))
        self.problems = problems


class DataError(MinitrainError):
    """The text or token file is absent, too short, of another format, or holds ids beyond the vocabulary."""

    exit_code = 3


class CheckpointError(MinitrainError):
    """A directory of weights is absent, incomplete, or of another model."""

    exit_code = 4


class NumericsError(MinitrainError):
    """A loss, the gradient norm or a logit is not finite. In a step all ranks raise it, before the update."""

    exit_code = 5


class InternalError(MinitrainError):
    """A defect of minitrain itself, or ranks that disagree about a collective."""

    exit_code = 6


class TryAgainError(MinitrainError):
    """The job was told to stop, hangs, or lost a rank: the same command may go on from its checkpoint."""

    exit_code = 75


def one_line(text: str) -> str:
    """`text` for a line of a terminal. Parts of it may come out of a file, so what a terminal would obey is
    shown and not sent, and of a very long text the middle is left out.
    """
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def render(problems: list[Problem], of: str = "configuration") -> str:
    """The text on stderr for one or several problems."""
    if len(problems) == 1:
        return f"minitrain: error: {problems[0]}"
    lines = [f"minitrain: error: {len(problems)} problems in the {of}"]
    return "\n".join(lines + [f"  - {p}" for p in problems])
