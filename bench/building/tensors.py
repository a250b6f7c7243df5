"""Write safetensors files byte for byte reproducibly."""

import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPE_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8"}
ALIGNMENT = 8


def write_safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str], path: Path) -> None:
    """Write `tensors` and `metadata` in the safetensors format.

    The file is the header's size in 8 bytes, the header in JSON padded with spaces, and the values. The
    library's own writer puts the metadata in a random order, so that two equal builds would differ.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, ensure_ascii=False, sort_keys=True).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    values = [np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values()]
    path.write_bytes(b"".join([len(encoded).to_bytes(8, "little"), encoded, *values]))
