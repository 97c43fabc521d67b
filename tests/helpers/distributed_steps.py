"""Program: steps of a trainer in float64 on the batches of the first argument, its last state written to the second.

The third argument is the framework, the fourth the number of devices. In PyTorch the environment says which worker this
process is; it takes its part of every batch. Only the main process writes.
"""

import sys

import numpy as np

from twinsep.config import from_dict
from twinsep.training import processes
from twinsep.utils.backend import twin


def main(source: str, out: str, framework: str, devices: int) -> None:
    """Run the steps."""
    content = np.load(source, allow_pickle=True)
    config = from_dict(content["config"].item())
    if framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    trainer = twin(framework, "train").Trainer(config, "cpu", devices)
    widen(trainer, framework)
    process = processes.current()
    part = config.training.batch_size // process.size
    own = slice(process.rank * part, (process.rank + 1) * part)
    reports = []
    for mixtures, targets in zip(content["mixture"], content["target"], strict=True):  # (accumulation, batch, ...)
        batches = [{"mixture": m[own], "target": t[own]} for m, t in zip(mixtures, targets, strict=True)]
        reports.append(trainer.step(batches, 1e-3, 0.5)["loss"])
        if len(reports) == 1:  # from moments of 0, the first ones are the gradient, clipped, times 1 − beta1
            gradient = {f"gradient/{k}": x for k, x in trainer.state().items() if k.startswith("adam_m/")}
    if process.is_main:
        np.savez(out, losses=reports, **gradient, **trainer.state())
    trainer.workers.close()


def widen(trainer, framework):
    """Make a trainer compute in float64."""
    if framework == "torch":
        trainer.model.double(), trainer.average.double()
        for moments in trainer.moments.values():
            moments.update({key: moments[key].double() for key in ("exp_avg", "exp_avg_sq")})
        trainer.parallel = trainer.workers.parallel(trainer.model)  # its buckets have the type of the weights
        return
    import jax
    import jax.numpy as jnp

    wide = jax.tree.map(lambda w: w.astype(jnp.float64), (trainer.weights, trainer.average))
    trainer.weights, trainer.average = wide
    trainer.moments = trainer.workers.place(trainer.adam.init(trainer.workers.local(trainer.weights)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
