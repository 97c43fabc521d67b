"""Stage ``paper``: compile ``paper/paper.typ`` with the current tables and figures to ``paper/paper.pdf``."""

from pathlib import Path

import typst

from ablations import settings
from ablations.stages import run_stage
from twinsep.errors import TwinsepError
from twinsep.utils.files import write_atomically

SOURCE = Path("paper/paper.typ")


def compile_paper(root: Path = settings.ROOT) -> bytes:
    """The PDF of the paper below ``root``. With ``timestamp`` 0 the same sources give the same bytes."""
    try:
        return typst.compile(root / SOURCE, root=root, timestamp=0)
    except typst.TypstError as error:
        raise TwinsepError(f"{SOURCE.name}: {error}") from error


def main() -> None:
    """Write the PDF beside its source."""
    write_atomically(settings.ROOT / SOURCE.with_suffix(".pdf"), compile_paper())


if __name__ == "__main__":
    run_stage(main)
