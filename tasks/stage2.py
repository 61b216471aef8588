"""Stage 2: train the real decoder on the frozen latents. With 0 steps, stage 1's decoder is the real one."""

from models.metric import PSNR
from stage import Stage
from storage.decoders import load_decoder, save_decoder
from storage.files import write_atomic
from storage.frozen import load_frozen
from storage.legends import write_legend
from training.autoencoder import GAIN_ERROR, GAIN_OVER_STAGE1, Stage2Objective
from training.launch import train
from training.live import LiveView
from training.loop import curves_csv
from training.operations import count_operations


def run(params, inputs, outputs) -> dict:
    num_steps, batch_size = params.arm.stage2.num_steps, params.stage2.batch_size
    frozen = load_frozen(inputs.freeze)
    write_legend(outputs.artifact, [PSNR, GAIN_OVER_STAGE1, GAIN_ERROR])
    if num_steps == 0:
        decoder = load_decoder(inputs.stage1, frozen.sha256)
        save_decoder(outputs.artifact, decoder.config, decoder, frozen.sha256)
        write_atomic(outputs.curves, b"step,num_images\n")
        return _metrics(params, decoder) | {"num_operations": 0, "num_skipped_steps": 0, "alarms": {}}
    name, view = f"stage2 {params.run_name}", LiveView(**outputs.live)
    trainer = train(Stage2Objective, params, inputs, params.stage2, num_steps, outputs.scratch, name, view)
    objective, progress = trainer.objective, trainer.progress
    decoder = trainer.load_selected("decoder")
    save_decoder(outputs.artifact, objective.config, decoder, frozen.sha256)
    write_atomic(outputs.curves, curves_csv(progress.rows))
    return _metrics(params, decoder) | {
        "num_operations": count_operations(objective, batch_size, objective.loss_terms.phases(num_steps)),
        "batch_division": progress.batch_division,
        "num_skipped_steps": progress.num_skipped_steps,
        "alarms": progress.alarms,
        **{name: value for name, value in progress.rows[-1].items() if name.startswith("validation_")},
    }


def _metrics(params, decoder) -> dict:
    num_steps = params.arm.stage2.num_steps
    return {
        "num_steps": num_steps,
        "num_adversarial_steps": params.arm.stage2.num_adversarial_steps,
        "num_images_seen": num_steps * params.stage2.batch_size,
        "num_parameters": {"decoder": sum(p.numel() for p in decoder.parameters())},
    }


STAGE = Stage(
    name="stage2",
    run=run,
    sections=("autoencoder", "reconstruction_loss", "stage2", "arms.{arm}.stage2"),
    inputs={
        "shards": "artifacts/shards",
        "stage1": "artifacts/stage1/{run}",
        "freeze": "artifacts/freeze/{run}",
        "encode": "artifacts/encode/{run}",
    },
    has_curves=True,
)

if __name__ == "__main__":
    STAGE.main()
