"""Stage 2: train the real decoder on the frozen latents. With 0 steps, stage 1's decoder is the real one."""

from stage import Stage
from storage.decoders import load_decoder, save_decoder
from storage.files import write_atomic
from storage.frozen import load_frozen
from training.autoencoder import Stage2Objective
from training.launch import train
from training.loop import curves_csv


def run(params, inputs, outputs) -> dict:
    num_steps = params.arm.stage2.num_steps
    frozen = load_frozen(inputs.freeze)
    if num_steps == 0:
        decoder = load_decoder(inputs.stage1, frozen.sha256)
        save_decoder(outputs.artifact, decoder.config, decoder, frozen.sha256)
        write_atomic(outputs.curves, b"step,num_images\n")
        return _metrics(0, 0, 0, decoder)
    trainer = train(Stage2Objective, params, inputs, params.stage2, num_steps, outputs.scratch, f"stage2 {params.run_name}")
    decoder = trainer.exported("decoder")
    save_decoder(outputs.artifact, trainer.objective.config, decoder, frozen.sha256)
    write_atomic(outputs.curves, curves_csv(trainer.progress.rows))
    last = {name: value for name, value in trainer.progress.rows[-1].items() if name.startswith("validation_")}
    metrics = _metrics(num_steps, num_steps * params.stage2.batch_size, trainer.progress.num_skipped_steps, decoder)
    return metrics | {"batch_division": trainer.progress.batch_division} | last


def _metrics(num_steps: int, num_images_seen: int, num_skipped_steps: int, decoder) -> dict:
    return {
        "num_steps": num_steps,
        "num_images_seen": num_images_seen,
        "num_skipped_steps": num_skipped_steps,
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
