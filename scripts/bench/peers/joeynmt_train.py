"""Trains JoeyNMT on a workload and prints its speed: joeynmt_train.py WORKLOAD FOLDER UPDATES WARMUP

Runs in the Python of an environment that has JoeyNMT 2.3. Batches are 128 sentences: it does not bucket by length, and
counting tokens it was slower.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import yaml
from recorder import Recorder


def _rnn(attention: str) -> dict[str, object]:
    words = {"embedding_dim": 256, "scale": False}
    encoder = {"hidden_size": 256, "bidirectional": True}
    decoder = {
        "hidden_size": 512, "hidden_dropout": 0.2, "input_feeding": True, "init_hidden": "last", "attention": attention,
    }  # fmt: skip
    both = {"type": "recurrent", "rnn_type": "lstm", "embeddings": words, "num_layers": 1, "dropout": 0.2}
    return {"tied_embeddings": False, "tied_softmax": False, "encoder": both | encoder, "decoder": both | decoder}


def _transformer() -> dict[str, object]:
    side = {
        "type": "transformer", "num_layers": 3, "num_heads": 4, "hidden_size": 256, "ff_size": 1024, "dropout": 0.1,
        "embeddings": {"embedding_dim": 256, "scale": True},
    }  # fmt: skip
    return {"tied_embeddings": True, "tied_softmax": True, "encoder": side, "decoder": dict(side)}


MODELS = {"r1": _rnn("luong"), "r2": _rnn("bahdanau"), "t": _transformer()}


def settings(name: str, folder: Path, updates: int) -> dict[str, object]:
    """JoeyNMT's configuration."""
    side = {"max_length": 100, "lowercase": False, "level": "word", "voc_file": f"{folder}/vocabulary"}
    return {
        "name": name, "model_dir": f"{folder}/joeynmt-{name}", "use_cuda": False, "fp16": False, "random_seed": 1,
        "joeynmt_version": "2.3.0",
        "data": {
            "train": f"{folder}/train", "dev": f"{folder}/valid", "test": f"{folder}/test", "dataset_type": "plain",
            "src": side | {"lang": "source"}, "trg": side | {"lang": "target"},
        },
        "testing": {
            "beam_size": 5, "batch_size": 64, "batch_type": "sentence", "max_output_length": 60, "eval_metrics": [],
        },
        "training": {
            "optimizer": "adam", "learning_rate": 0.001, "learning_rate_min": 1e-8, "scheduling": "exponential",
            "decrease_factor": 1.0, "clip_grad_norm": 1.0, "batch_size": 128, "batch_type": "sentence",
            "normalization": "tokens", "epochs": 100, "updates": updates, "logging_freq": 50,
            "validation_freq": 10_000_000, "early_stopping_metric": "ppl", "keep_best_ckpts": 1, "overwrite": True,
            "shuffle": True, "label_smoothing": 0.1 if name == "t" else 0.0,
        },
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros", "embed_initializer": "normal",
            "embed_init_weight": 0.1,
        } | MODELS[name],
    }  # fmt: skip


def main() -> None:
    """Write the configuration, watch the trainer's own step, and train."""
    name, folder, updates, warmup = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    config = folder / f"joeynmt-{name}.yaml"
    config.write_text(yaml.safe_dump(settings(name, folder, updates), sort_keys=False), encoding="utf-8")
    from joeynmt.training import TrainManager

    recorder, step, validate = Recorder(warmup), TrainManager._train_step, TrainManager._validate

    def watched(self, batch):  # type: ignore[no-untyped-def]
        recorder.update(int(batch.ntokens))
        return step(self, batch)

    def validated(self, data):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        result = validate(self, data)
        recorder.leave_out(time.perf_counter() - began)
        return result

    TrainManager._train_step, TrainManager._validate = watched, validated
    sys.argv = ["joeynmt", "train", str(config), "-t"]  # -t: no test at the end
    from joeynmt.__main__ import main as joeynmt

    joeynmt()


if __name__ == "__main__":
    main()
