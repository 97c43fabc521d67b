"""Stage ``configure``: a configuration file for each run, so that a run depends on its own row only; and for the same
reason one for the rows whose cost is measured."""

from ablations import settings
from twinsep.errors import guarded
from twinsep.utils.files import write_json


def main() -> None:
    found = {run: settings.configuration(run).to_dict() for run in settings.runs()}
    for run, configuration in found.items():
        write_json(settings.CONFIGS / f"{run}.json", configuration)
    costly = {
        run.row: found[name]
        for name, run in settings.runs().items()
        if run.framework == "torch" and settings.rows()[run.row]["axis"] in ("all", "mixer")
    }
    write_json(settings.CONFIGS / "cost.json", costly)


if __name__ == "__main__":
    guarded(main)
