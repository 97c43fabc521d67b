"""Stages of the pipeline: thin code between ``dvc.yaml`` and the functions of ``twinsep``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

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
    listed = settings.listed_inputs(stage) if stage else {}
    if changed := _changed(listed, {name: before.get(name) for name in listed}):
        raise TwinsepError(f"{changed} changed since this command listed the code: run it again")
    provenance.commit()  # now, because records are to name the commit that ran
    main()
    after = settings.stage_inputs(stage) if stage else {}
    if changed := _changed(before, after):
        raise TwinsepError(
            f"{changed} changed while the stage {stage} ran, so that DVC would record other code than that which ran: "
            f"`dvc repro {stage}` makes its results again (finished trainings are kept if you first undo the change)"
        )


def _changed(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> str:
    """The names, at most five, whose values differ."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
