"""Prior: train the generator of latents, on Ray Train workers or in process. It does not depend on stage 2."""

from collections import Counter

from stage import Stage
from storage.files import write_atomic
from storage.legends import write_legend
from storage.priors import save_prior
from training.launch import train
from training.live import LiveView
from training.loop import curves_csv
from training.prior import PriorObjective


def run(params, inputs, outputs) -> dict:
    settings = params.prior.training
    name, view = f"prior {params.run_name}", LiveView(**outputs.live)
    trainer = train(PriorObjective, params, inputs, settings, settings.num_steps, outputs.scratch, name, view)
    objective, progress = trainer.objective, trainer.progress
    prior = trainer.load_selected("prior")
    counts = Counter(objective.examples.latents.labels)
    label_counts = [counts[label] for label in range(objective.config.num_classes)]
    save_prior(outputs.artifact, prior, objective.frozen_sha256, label_counts)
    write_legend(outputs.artifact, [objective.metric])
    write_atomic(outputs.curves, curves_csv(progress.rows, last=objective.metric.name))
    return {
        "num_steps": settings.num_steps,
        "num_images_seen": settings.num_steps * settings.batch_size,
        "batch_division": progress.batch_division,
        "num_skipped_steps": progress.num_skipped_steps,
        "alarms": progress.alarms,
        "num_parameters": {"prior": sum(p.numel() for p in prior.parameters())},
        "best_step": progress.best_step,
        objective.selection: progress.best_value,
        "frozen_sha256": objective.frozen_sha256,
    }


STAGE = Stage(
    name="prior",
    run=run,
    sections=("prior",),
    inputs={"encode": "artifacts/encode/{run}"},
    has_curves=True,
    shown={"freeze": "artifacts/freeze/{run}", "stage1": "artifacts/stage1/{run}", "stage2": "artifacts/stage2/{run}"},
)

if __name__ == "__main__":
    STAGE.main()
