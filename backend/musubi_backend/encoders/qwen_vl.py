"""Qwen2.5-VL: transformers' model filled from a ComfyUI file or a Hugging Face folder, asked about images and clips.

The prompt is put together here in the model's own chat format (huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, chat_template.json),
so no processor is needed, only a tokenizer. Answers are the most likely ones (no sampling): the same image gets the same caption.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..weights.recognise import expect
from .lean_transformers import from_transformers
from .qwen_vl_load import load_model, weight_file
from .qwen_vl_pixels import Pixels
from .token_files import QWEN_VL, find_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KIND = "qwen_vl"
_SYSTEM = "You are a helpful assistant."
_TURN_ENDS, _TEXT_ENDS = "<|im_end|>", "<|endoftext|>"
_SPECIAL = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}


class QwenVL:
    """Images and clips to text."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8: bool = False,
        tokenizer: str | None = None,
        flag: str = "--model_path",
    ) -> QwenVL:
        """The model in `path`: a .safetensors file (any part of a split one), or a folder in Hugging Face's layout.

        fp8: keep the weights of linear layers in fp8 (files that are in fp8 stay so anyway). tokenizer: its folder; None looks next to
        the weights and in ComfyUI. UserError for other files, incomplete ones, and when there is no tokenizer.
        """
        place = Path(path)
        file = weight_file(place, flag)
        expect(file, KIND, flag)
        words = load_tokenizer(Path(tokenizer) if tokenizer else find_folder(QWEN_VL, file)[0])
        ids = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
        model = load_model(file, ids, device, dtype, fp8=fp8)
        rows = model.get_input_embeddings().num_embeddings
        if len(words) > rows:
            raise UserError(
                f"the tokenizer in {words.name_or_path} has {len(words)} tokens, but {flag} {path} knows {rows}; "
                "they do not belong together"
            )
        return cls(model, words, device)

    def describe(self, media: Sequence[Pixels], prompt: str, max_new_tokens: int, stop: Callable[[], bool] = lambda: False) -> list[str]:
        """What the model answers to `prompt` about each of `media`, all images or all clips, worked on at once.

        stop: asked after every token; when true, answers end where they are.
        """
        import torch

        rows = [self.prompt_ids(pixels, prompt) for pixels in media]
        inputs = self._inputs(media, rows)
        with torch.no_grad():
            ids = self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=self._turn_ends(),
                pad_token_id=self._padding(),
                stopping_criteria=[_Stopping(stop)],
            )
        answers = ids[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def prompt_ids(self, pixels: Pixels, prompt: str) -> list[int]:
        """The token ids of the conversation up to the answer; the medium's place is held by as many ids as it has tokens."""
        pad = _SPECIAL["image" if pixels.seconds_per_grid is None else "video"]
        before = f"<|im_start|>system\n{_SYSTEM}{_TURN_ENDS}\n<|im_start|>user\n{_SPECIAL['vision_start']}"
        after = f"{_SPECIAL['vision_end']}{prompt}{_TURN_ENDS}\n<|im_start|>assistant\n"
        head, tail = (self.tokenizer.encode(text, add_special_tokens=False) for text in (before, after))
        return [*head, *[self.tokenizer.convert_tokens_to_ids(pad)] * pixels.tokens, *tail]

    def _inputs(self, media: Sequence[Pixels], rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Arguments of transformers' forward: rows are padded on the left, so that all end where the answers begin."""
        import numpy as np
        import torch

        longest = max(map(len, rows))
        padding = self._padding()
        ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        config = self.model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        patches = torch.from_numpy(np.concatenate([pixels.patches for pixels in media]))
        grid = torch.tensor([pixels.grid for pixels in media])
        times = [pixels.seconds_per_grid for pixels in media if pixels.seconds_per_grid is not None]
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:  # transformers before 5 looks for the ids itself
            inputs["mm_token_type_ids"] = kinds
        if times:
            inputs |= {"pixel_values_videos": patches, "video_grid_thw": grid, "second_per_grid_ts": torch.tensor(times)}
        else:
            inputs |= {"pixel_values": patches, "image_grid_thw": grid}
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _turn_ends(self) -> list[int]:
        ends = (*map(self.tokenizer.convert_tokens_to_ids, (_TURN_ENDS, _TEXT_ENDS)), self.tokenizer.eos_token_id)
        return sorted({token for token in ends if token is not None})

    def _padding(self) -> int:
        padding: int | None = self.tokenizer.pad_token_id
        return self._turn_ends()[0] if padding is None else padding


class _Stopping:
    """A stopping criterion of transformers: one answer per row of the batch."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        import torch

        return torch.full((input_ids.shape[0],), self._stop(), dtype=torch.bool, device=input_ids.device)


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer in `folder`. UserError when it cannot be read or is not Qwen2.5-VL's."""
    (AutoTokenizer,) = from_transformers("AutoTokenizer")

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read ({(str(error).splitlines() or [''])[0]}); repair that folder") from error
    known = tokenizer.get_vocab()
    missing = [token for token in (*_SPECIAL.values(), _TURN_ENDS) if token not in known]
    if missing:
        raise UserError(f"the tokenizer in {folder} is not Qwen2.5-VL's: it does not know {missing[0]}")
    return tokenizer
