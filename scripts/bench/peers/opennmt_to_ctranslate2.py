"""An OpenNMT-py Transformer (workload t-plain) as a CTranslate2 model: opennmt_to_ctranslate2.py MODEL FOLDER"""

from __future__ import annotations

import sys

from ctranslate2.converters import OpenNMTPyConverter

OpenNMTPyConverter(sys.argv[1], unsafe_deserialization=True).convert(sys.argv[2], force=True)
