"""Stage ``configure``: one configuration file a run, so that a run depends on its own row only."""

from ablations import settings
from twinsep.cli import guarded
from twinsep.files import write_json


def main() -> None:
    for run in settings.runs():
        write_json(settings.CONFIGS / f"{run}.json", settings.configuration(run).to_dict())


if __name__ == "__main__":
    guarded(main)
