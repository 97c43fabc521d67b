"""Stage ``configure``: write one file of configurations per group, and one of the rows whose cost is measured.

A stage that depends on such a file runs again only when its own row changes.
"""

from ablations import settings
from ablations.stages import run_stage
from twinsep.utils.files import write_json

#: Axes whose rows are measured by stage ``cost``.
MEASURED = {"all", "size", "mixer"}


def main() -> None:
    """Write ``results/work/configs/<group>.json``, seed -> configuration, and ``cost.json`` beside them."""
    settings.rows()  # raises for a faulty table before anything is written
    for name in settings.groups():
        found = {seed: settings.configuration(name, seed).to_dict() for seed in settings.seeds(name)}
        write_json(settings.configs_path(name), found)
    measured = {
        group.row: settings.configuration(name, group.seeds[0]).to_dict()
        for name, group in settings.trained_groups().items()
        if group.framework == "torch" and not MEASURED.isdisjoint(settings.axes(group.row))
    }
    write_json(settings.CONFIGS / "cost.json", measured)


if __name__ == "__main__":
    run_stage(main)
