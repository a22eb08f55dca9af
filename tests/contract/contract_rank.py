"""One of several processes of a training: as `python -m musubi_backend`, with gloo where NCCL would refuse two processes on one GPU."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed
from musubi_backend.__main__ import main

if __name__ == "__main__":
    begin = torch.distributed.init_process_group

    def with_gloo(*_: Any, **given: Any) -> None:
        begin(**{**given, "backend": "gloo"})

    torch.distributed.init_process_group = with_gloo
    sys.exit(main())
