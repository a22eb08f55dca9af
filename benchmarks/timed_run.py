"""Runs one tool of either engine in this process and prints when its optimizer steps ended, as `BENCH {json}`.

    python timed_run.py ours   wan_train_network --flags…
    python timed_run.py musubi wan_train_network --flags…      (PYTHONPATH has the checkout's src)

Both engines are timed by the same global optimizer hook of torch. musubi-tuner expects CUDA; without a GPU the few places
that insist on it are given CPU equivalents here (its arithmetic in fp32 and its step are untouched), and its model sizes
are set from `BENCH_GEOMETRY`, because it cannot read them from a file.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from typing import Any


def main() -> int:
    engine, tool, *arguments = sys.argv[1:]
    if "train" not in tool:  # nothing to hook, and torch might not be needed at all
        return run_tool(engine, tool, arguments)
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = float(os.environ["BENCH_STARTED"])
    steps: list[tuple[Any, tuple[float, float]]] = []
    register_optimizer_step_post_hook(lambda one, *_: steps.append((one, (time.time() - started, time.process_time()))))
    try:
        return run_tool(engine, tool, arguments)
    finally:
        ends = [end for one, end in steps if one is steps[-1][0]]  # ours tries its settings on another optimizer before it loads anything
        if ends:
            wall = [after[0] - before[0] for before, after in itertools.pairwise(ends)]
            cpu = [after[1] - before[1] for before, after in itertools.pairwise(ends)]
            print("BENCH " + json.dumps({"first_step": ends[0][0], "step_wall": wall, "step_cpu": cpu}), flush=True)


def run_tool(engine: str, tool: str, arguments: list[str]) -> int:
    """One tool of one engine, in this process. Returns its exit code."""
    if engine == "ours":
        from musubi_backend.__main__ import main as backend

        if _framepack_in_float32(tool):
            _ours_in_float32()
        return backend([tool, *arguments])
    module = import_musubi(tool)
    sys.argv = [f"{tool}.py", *arguments]
    module.main()
    return 0


def import_musubi(tool: str):  # type: ignore[no-untyped-def]
    import torch

    if torch.cuda.is_available():
        return importlib.import_module(f"musubi_tuner.{tool}")
    torch.cuda.current_device = lambda: 0  # a default argument of its T5 class asks at import time
    module = importlib.import_module(f"musubi_tuner.{tool}")
    if "BENCH_GEOMETRY" in os.environ:
        resize = next((resize for prefix, resize in _RESIZE.items() if tool.startswith(prefix)), _resize_wan)
        resize(json.loads(os.environ["BENCH_GEOMETRY"]))
    if _framepack_in_float32(tool):
        train = module.FramePackNetworkTrainer.train
        module.FramePackNetworkTrainer.train = lambda self, args: train(self, _with_float32(args))
    if "BENCH_VAE" in os.environ:
        vae = importlib.import_module("musubi_tuner.wan.modules.vae")
        build, sizes = vae._video_vae, json.loads(os.environ["BENCH_VAE"])
        vae._video_vae = lambda *args, **kwargs: build(*args, **{**kwargs, **sizes})
    return module


def _framepack_in_float32(tool: str) -> bool:
    """Both engines compute FramePack in bf16 whatever is asked for. On a CPU that imitates bf16 both are made to compute in float32."""
    return tool.startswith("fpack_train") and os.environ.get("BENCH_DTYPE") == "fp32"


def _ours_in_float32() -> None:
    import torch
    from musubi_backend.architectures.framepack import load

    choose = load.training_dtype
    load.training_dtype = lambda *args, **named: choose(*args, **{**named, "unset": torch.float32})


def _with_float32(args: Any) -> Any:
    args.dit_dtype = "float32"
    return args


def _resize_wan(geometry: dict[str, Any]) -> None:
    for config in importlib.import_module("musubi_tuner.wan.configs").WAN_CONFIGS.values():
        config.update(geometry)
    _hold_fp32_parts(importlib.import_module("musubi_tuner.wan.modules.model"))


def _resize_hunyuan_video(geometry: dict[str, Any]) -> None:
    for config in importlib.import_module("musubi_tuner.hunyuan_model.models").HUNYUAN_VIDEO_CONFIG.values():
        config.update(geometry)
    lengths_on_the_cpu()


def lengths_on_the_cpu() -> None:
    """HunyuanVideo's lengths of texts are made on "cuda", whatever the device; once is enough."""
    import torch

    attention = importlib.import_module("musubi_tuner.hunyuan_model.attention")
    lengths = attention.get_cu_seqlens

    def on_the_cpu(*args, **kwargs):  # type: ignore[no-untyped-def]
        zeros = torch.zeros
        torch.zeros = lambda *a, **k: zeros(*a, **{**k, "device": "cpu"})
        try:
            return lengths(*args, **kwargs)
        finally:
            torch.zeros = zeros

    for name in ("hunyuan_model.attention", "hunyuan_model.models"):
        module = importlib.import_module(f"musubi_tuner.{name}")
        if hasattr(module, "get_cu_seqlens"):
            module.get_cu_seqlens = on_the_cpu


def _resize_framepack(geometry: dict[str, Any]) -> None:
    model = importlib.import_module("musubi_tuner.frame_pack.hunyuan_video_packed").HunyuanVideoTransformer3DModelPacked
    build = model.__init__
    model.__init__ = lambda self, *args, **kwargs: build(self, *args, **{**kwargs, **geometry})


_RESIZE = {"hv_": _resize_hunyuan_video, "fpack_": _resize_framepack}


def _hold_fp32_parts(model) -> None:  # type: ignore[no-untyped-def]
    """CUDA autocast runs the time embedding and affine layer norms in fp32; CPU autocast does not, so say it outright."""
    import torch.nn.functional as F

    forward = model.WanModel.forward

    def with_fp32_time(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.time_embedding.float()
        self.time_projection.float()
        return forward(self, *args, **kwargs)

    def layer_norm(self, x):  # type: ignore[no-untyped-def]
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).type_as(x)

    model.WanModel.forward = with_fp32_time
    model.WanLayerNorm.forward = layer_norm


if __name__ == "__main__":
    sys.exit(main())
