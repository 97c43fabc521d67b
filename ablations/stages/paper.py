"""Stage ``paper``: ``paper/paper.typ`` with the tables and figures as they stand, to ``paper/paper.pdf``."""

import typst

from ablations import settings
from twinsep.errors import TwinsepError, guarded
from twinsep.utils.files import write_atomically

SOURCE = settings.ROOT / "paper" / "paper.typ"


def compiled() -> bytes:
    """The paper; ``timestamp`` 0, so that the same sources give the same bytes."""
    try:
        return typst.compile(SOURCE, root=settings.ROOT, timestamp=0)
    except typst.TypstError as error:
        raise TwinsepError(f"{SOURCE.name}: {error}") from error


def main() -> None:
    write_atomically(SOURCE.with_suffix(".pdf"), compiled())


if __name__ == "__main__":
    guarded(main)
