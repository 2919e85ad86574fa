"""Times OpenNMT-py on the test pieces, 64 sentences a batch: opennmt_translate.py MODEL FOLDER BEAM OUTPUT [PART]

PART is of the corpus: test, if none is given.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from recorder import timed


def main() -> None:
    """Translate with the peer's own command, its inference watched."""
    model, folder, beam, output, part = [*sys.argv[1:], "test"][:5]
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # or it cannot read the checkpoint that it has just written
    from onmt import inference_engine
    from onmt.bin.translate import main as translate

    engine = inference_engine.InferenceEngine
    engine.infer_file = timed(engine.infer_file)
    sys.argv = [
        "onmt_translate", "-model", model, "-src", f"{folder}/{part}.source", "-output", output, "-beam_size", beam,
        "-batch_size", "64", "-max_length", "60", "-length_penalty", "avg", "-gpu", "-1",
    ]  # fmt: skip
    translate()
    lines = Path(output).read_text(encoding="utf-8").splitlines()
    pieces = sum(len(line.split()) for line in lines)
    print(json.dumps({"seconds": timed.seconds[0], "sentences": len(lines), "pieces": pieces}))


if __name__ == "__main__":
    main()
