"""Times CTranslate2 on the test pieces, 64 sentences a batch: ctranslate2_translate.py MODEL FOLDER BEAM OUTPUT TYPE"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ctranslate2

model, folder, beam, output, compute = sys.argv[1:6]
threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
translator = ctranslate2.Translator(model, compute_type=compute, inter_threads=1, intra_threads=threads)
lines = [line.split() for line in Path(folder, "test.source").read_text(encoding="utf-8").splitlines()]
options = {"beam_size": int(beam), "max_decoding_length": 60, "length_penalty": 1.0}
translator.translate_batch(lines[:64], **options)
began = time.perf_counter()
found = translator.translate_batch(lines, max_batch_size=64, batch_type="examples", **options)
seconds = time.perf_counter() - began
texts = [" ".join(one.hypotheses[0]) for one in found]
Path(output).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
pieces = sum(len(one.hypotheses[0]) for one in found)
print(json.dumps({"seconds": seconds, "sentences": len(lines), "pieces": pieces, "compute": translator.compute_type}))
