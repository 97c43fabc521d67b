"""Stages of the pipeline: thin code between ``dvc.yaml`` and the functions of ``twinsep``."""

from __future__ import annotations

import os
from collections.abc import Callable

from ablations import settings
from twinsep.errors import TwinsepError, guarded
from twinsep.utils import provenance


def run_stage(main: Callable[[], object]) -> None:
    """Run ``main`` as :func:`twinsep.errors.guarded` does; the stage fails if its code or parameters change meanwhile.

    DVC hashes dependencies when a stage has ended: it would record the new code beside results of the old one.
    """
    guarded(lambda: _run_unchanged(main))


def _run_unchanged(main: Callable[[], object]) -> None:
    stage = os.environ.get("DVC_STAGE")  # set by DVC; nothing is recorded without it
    before = settings.stage_inputs(stage) if stage else {}
    provenance.commit()  # now, because records are to name the commit that ran
    main()
    after = settings.stage_inputs(stage) if stage else {}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        names = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
        raise TwinsepError(
            f"{names} changed while the stage {stage} ran, so that DVC would record other code than that which ran: "
            f"`dvc repro {stage}` makes its results again (finished trainings are kept if you first undo the change)"
        )
