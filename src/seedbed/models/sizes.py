"""Named sizes of the decoder, by the parameters of its body (embedding and head left out).

1.6B is the published body of the paper that this project began with: 24 layers, 32 heads, width 2,048, SwiGLU of 8,192.
"""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "0.1M": {"num_layers": 3, "d_model": 64, "num_heads": 4, "d_ff": 128},
    "0.3M": {"num_layers": 3, "d_model": 96, "num_heads": 6, "d_ff": 256},
    "0.8M": {"num_layers": 4, "d_model": 128, "num_heads": 4, "d_ff": 344},
    "3M": {"num_layers": 6, "d_model": 192, "num_heads": 6, "d_ff": 512},
    "5M": {"num_layers": 6, "d_model": 256, "num_heads": 8, "d_ff": 688},
    "20M": {"num_layers": 8, "d_model": 448, "num_heads": 7, "d_ff": 1216},
    "85M": {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 2048},
    "300M": {"num_layers": 24, "d_model": 1024, "num_heads": 16, "d_ff": 2752},
    "1.6B": {"num_layers": 24, "d_model": 2048, "num_heads": 32, "d_ff": 8192},
}
