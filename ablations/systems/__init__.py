"""Systems of the field, trained on the same songs and scored in the same way as the rows of the ablations.

The stages of ``ablations/systems/dvc.yaml``; see ``ablations/README.md``.
"""
