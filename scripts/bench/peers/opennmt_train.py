"""Trains OpenNMT-py on a workload and prints its speed: opennmt_train.py WORKLOAD FOLDER UPDATES WARMUP [SAVE_EVERY]

Runs in the Python of an environment that has OpenNMT-py 3.5. FOLDER has the pieces that speed.py wrote.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import yaml
from recorder import Recorder

RNN = {
    "encoder_type": "brnn", "decoder_type": "rnn", "rnn_type": "LSTM", "word_vec_size": 256, "enc_layers": 1,
    "dec_layers": 1, "enc_hid_size": 512, "dec_hid_size": 512, "dropout": [0.2], "learning_rate": 0.001,
    "start_decay_steps": 10_000_000,
}  # fmt: skip
MODELS = {
    "r1": RNN | {"global_attention": "general", "input_feed": 1},
    "r1n": RNN | {"global_attention": "general", "input_feed": 0},
    "r2": RNN | {"global_attention": "mlp", "input_feed": 1},
    "t": {
        "encoder_type": "transformer", "decoder_type": "transformer", "position_encoding": True, "enc_layers": 3,
        "dec_layers": 3, "heads": 4, "hidden_size": 256, "word_vec_size": 256, "transformer_ff": 1024,
        "dropout": [0.1], "attention_dropout": [0.1], "label_smoothing": 0.1, "share_embeddings": True,
        "share_decoder_embeddings": True, "param_init_glorot": True, "param_init": 0, "adam_beta2": 0.998,
        "decay_method": "noam", "warmup_steps": 400, "learning_rate": 0.4,
    },
}  # fmt: skip
MODELS["t-plain"] = MODELS["t"] | {"self_attn_type": "scaled-dot"}  # slower, but CTranslate2 converts only this


def settings(name: str, folder: Path, updates: int, save_every: int) -> dict[str, object]:
    """OpenNMT-py's configuration. 2400 padded tokens a batch give about 2050 real ones on Multi30k."""
    train = {"path_src": f"{folder}/train.source", "path_tgt": f"{folder}/train.target"}
    valid = {"path_src": f"{folder}/valid.source", "path_tgt": f"{folder}/valid.target"}
    return {
        "data": {"corpus": train, "valid": valid}, "src_vocab": f"{folder}/opennmt.vocabulary", "share_vocab": True,
        "src_vocab_size": 8000, "tgt_vocab_size": 8000, "save_model": f"{folder}/opennmt-{name}", "overwrite": True,
        "seed": 1, "bucket_size": 29000, "num_workers": 0, "batch_type": "tokens", "batch_size": 2400,
        "valid_batch_size": 2048, "normalization": "tokens", "accum_count": [1], "optim": "adam", "max_grad_norm": 1.0,
        "report_every": 50, "valid_steps": 10_000_000, "save_checkpoint_steps": save_every, "train_steps": updates,
    } | MODELS[name]  # fmt: skip


def main() -> None:
    """Write the configuration, watch the trainer's own step, and train."""
    name, folder, updates, warmup = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    save_every = int(sys.argv[5]) if len(sys.argv) > 5 else updates
    words = (folder / "vocabulary").read_text(encoding="utf-8").splitlines()
    (folder / "opennmt.vocabulary").write_text("".join(f"{word}\t1\n" for word in words), encoding="utf-8")
    config = folder / f"opennmt-{name}.yaml"
    config.write_text(yaml.safe_dump(settings(name, folder, updates, save_every)), encoding="utf-8")
    from onmt.trainer import Trainer

    recorder, step, validate = Recorder(warmup), Trainer._gradient_accumulation, Trainer.validate

    def watched(self, batches, *rest):  # type: ignore[no-untyped-def]
        padding = self.train_loss.padding_idx
        recorder.update(sum(int(batch["tgt"][:, 1:, 0].ne(padding).sum()) for batch in batches))
        return step(self, batches, *rest)

    def validated(self, *rest, **options):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        result = validate(self, *rest, **options)
        recorder.leave_out(time.perf_counter() - began)
        return result

    Trainer._gradient_accumulation, Trainer.validate = watched, validated
    sys.argv = ["onmt_train", "-config", str(config)]
    from onmt.bin.train import main as train

    train()


if __name__ == "__main__":
    main()
