"""Leave out of the pipeline, in place, the rows that the chosen profile does not train, but for one.

The two stages of such a row do nothing, for five seconds. ``dvc.lock`` keeps the frozen stages alone: DVC reads and
writes the whole file at every stage.
"""

from pathlib import Path

import yaml

from ablations import settings

LEFT_OUT = "torch-lstm"


def main() -> None:
    """Rewrite ``rows.yaml`` and ``dvc.lock``."""
    trained = settings.trained_groups()
    assert LEFT_OUT not in trained
    rows = settings.row_table()
    groups = {name: group for name, group in rows["groups"].items() if name in trained or name == LEFT_OUT}
    write(Path("ablations/rows.yaml"), rows | {"groups": groups})
    pipeline, lock = (yaml.safe_load(Path(name).read_text()) for name in ("dvc.yaml", "dvc.lock"))
    frozen = {name: lock["stages"][name] for name, stage in pipeline["stages"].items() if stage.get("frozen")}
    write(Path("dvc.lock"), lock | {"stages": frozen})


def write(path: Path, content: dict) -> None:
    """Write ``content`` in the order it has."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
