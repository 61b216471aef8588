"""Stage 1: train encoder, bottleneck and auxiliary decoder together. The decoder's weakness is the arm's."""

from models.metric import PSNR
from stage import Stage
from storage.decoders import save_decoder
from storage.files import write_atomic
from storage.frozen import encoder_config, save_encoder
from storage.legends import write_legend
from training.autoencoder import Stage1Objective
from training.launch import train
from training.linear_map import GAIN_OVER_LINEAR, GAIN_OVER_MEAN
from training.live import LiveView
from training.loop import curves_csv
from training.operations import count_operations


def run(params, inputs, outputs) -> dict:
    num_steps, batch_size = params.arm.stage1.num_steps, params.stage1.batch_size
    name, view = f"stage1 {params.run_name}", LiveView(**outputs.live)
    trainer = train(Stage1Objective, params, inputs, params.stage1, num_steps, outputs.scratch, name, view)
    objective, progress = trainer.objective, trainer.progress
    autoencoder = trainer.load_selected("autoencoder")
    config = encoder_config(objective.config, objective.bottleneck_config)
    sha256 = save_encoder(outputs.artifact, config, autoencoder["encoder"], autoencoder["bottleneck"])
    save_decoder(outputs.artifact, objective.config, autoencoder["decoder"], sha256)
    write_legend(outputs.artifact, [PSNR, GAIN_OVER_MEAN, GAIN_OVER_LINEAR, *autoencoder["bottleneck"].metrics])
    write_atomic(outputs.curves, curves_csv(progress.rows))
    last = progress.rows[-1]
    return {
        "num_steps": num_steps,
        "num_adversarial_steps": params.arm.stage1.num_adversarial_steps,
        "num_images_seen": num_steps * batch_size,
        "num_operations": count_operations(objective, batch_size, objective.loss_terms.phases(num_steps)),
        "batch_division": progress.batch_division,
        "num_skipped_steps": progress.num_skipped_steps,
        "alarms": progress.alarms,
        "num_parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in autoencoder.items()},
        **{name: value for name, value in last.items() if name.startswith("validation_")},
    }


STAGE = Stage(
    name="stage1",
    run=run,
    sections=("autoencoder", "bottleneck", "reconstruction_loss", "stage1", "arms.{arm}.stage1"),
    inputs={"shards": "artifacts/shards"},
    has_curves=True,
)

if __name__ == "__main__":
    STAGE.main()
