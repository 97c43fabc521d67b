"""Stage ``configure``: write one configuration file per run, and one for the rows whose cost is measured.

A stage that depends on such a file runs again only when its own row changes.
"""

from ablations import settings
from twinsep.errors import guarded
from twinsep.utils.files import write_json


def main() -> None:
    """Write ``results/work/configs/<run>.json`` and ``cost.json`` beside them."""
    found = {run: settings.configuration(run).to_dict() for run in settings.runs()}
    for run, configuration in found.items():
        write_json(settings.CONFIGS / f"{run}.json", configuration)
    measured = {
        run.row: found[name]
        for name, run in settings.runs().items()
        if run.framework == "torch" and settings.rows()[run.row]["axis"] in ("all", "mixer")
    }
    write_json(settings.CONFIGS / "cost.json", measured)


if __name__ == "__main__":
    guarded(main)
