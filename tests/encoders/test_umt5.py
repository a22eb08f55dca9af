"""umt5 against the reference (the real musubi-tuner's own code, float32), in all namings, and its tokenizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from musubi_backend.demo.umt5 import CORPUS, sentencepiece_model, umt5
from musubi_backend.encoders import offloaded
from musubi_backend.encoders import tokenizer as tokenizers
from musubi_backend.encoders.tokenizer import clean, find_tokenizer, from_sentencepiece
from musubi_backend.encoders.umt5 import UMT5, padded
from musubi_backend.errors import UserError
from musubi_backend.memory.fp8 import quantise
from musubi_backend.weights.safetensors_file import save_atomic
from safetensors.torch import load_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def spiece() -> bytes:
    return sentencepiece_model()


@pytest.fixture(scope="module")
def original(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden/vae_te/umt5.safetensors")


def _hugging_face(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of ComfyUI's file, written out here a second time on purpose."""
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for block in range(2):
        head, tail = f"encoder.block.{block}.layer.0.", f"encoder.block.{block}.layer.1."
        names |= {f"blocks.{block}.attn.{part}.weight": f"{head}SelfAttention.{part}.weight" for part in "qkvo"}
        names |= {
            f"blocks.{block}.norm1.weight": f"{head}layer_norm.weight",
            f"blocks.{block}.pos_embedding.embedding.weight": f"{head}SelfAttention.relative_attention_bias.weight",
            f"blocks.{block}.norm2.weight": f"{tail}layer_norm.weight",
            f"blocks.{block}.ffn.gate.0.weight": f"{tail}DenseReluDense.wi_0.weight",
            f"blocks.{block}.ffn.fc1.weight": f"{tail}DenseReluDense.wi_1.weight",
            f"blocks.{block}.ffn.fc2.weight": f"{tail}DenseReluDense.wo.weight",
        }
    return {names[name]: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("naming", ["original", "pth", "comfyui"])
def test_features_equal_the_reference(
    naming: str, original: dict[str, torch.Tensor], shared: Path, tmp_path: Path, spiece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musubi_backend.encoders.umt5.find_tokenizer", lambda *_: from_sentencepiece(spiece, "test"))
    path = tmp_path / ("umt5.pth" if naming == "pth" else "umt5.safetensors")
    if naming == "pth":
        torch.save(original, path)
    else:
        save_atomic(_hugging_face(original) if naming == "comfyui" else original, path)
    encoder = UMT5.load(path, CPU, torch.float32)
    io = load_file(shared / "golden/vae_te/umt5.io.safetensors")
    features = encoder.features(io["ids"], io["mask"])
    torch.testing.assert_close(features[0], io["out"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[1], io["out.trimmed1"], rtol=1e-4, atol=1e-5)


def test_less_padding_gives_the_same_features(tmp_path: Path) -> None:
    """musubi-tuner pads every caption to 512 tokens and cuts the features; we pad to the longest of the batch."""
    path = tmp_path / "umt5.safetensors"
    save_atomic(umt5(64, 0), path)
    encoder = UMT5.load(path, CPU, torch.float32)
    together = encoder.encode([CORPUS[0], CORPUS[1]])
    rows = encoder.tokenizer.encode_batch([CORPUS[0]], 512)
    ids, mask = padded([*rows, [0] * 512])
    alone = encoder.features(torch.tensor(ids)[:1], torch.tensor([[1] * len(rows[0]) + [0] * (512 - len(rows[0]))]))[0]
    assert len(together[0]) == len(rows[0]) == sum(mask[0])
    torch.testing.assert_close(together[0], alone, rtol=1e-4, atol=1e-5)


def test_weights_already_right_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "umt5.safetensors"
    save_atomic(umt5(64, 0), path)
    model = UMT5.load(path, CPU, torch.bfloat16).model
    assert model.shared.weight.data_ptr() == model.encoder.embed_tokens.weight.data_ptr()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.is_meta for parameter in model.state_dict().values())


@pytest.mark.parametrize("fp8", [False, True])
def test_comfyui_s_scaled_fp8_file_gives_about_the_same_features(tmp_path: Path, fp8: bool) -> None:
    whole = umt5(64, 0)
    save_atomic(whole, tmp_path / "umt5.safetensors")
    small: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in whole.items():
        if tensor.ndim == 2 and re.search(r"\.[qkvo]\.weight|\.w[io]", name):
            stored, scale = quantise(tensor.float(), "tensor")
            small |= {name: stored, name.replace(".weight", ".scale_weight"): scale.reshape(())}
        else:
            small[name] = tensor
    save_atomic(small, tmp_path / "umt5_fp8_scaled.safetensors")
    expected = UMT5.load(tmp_path / "umt5.safetensors", CPU, torch.float32).encode([CORPUS[0]])[0]
    encoder = UMT5.load(tmp_path / "umt5_fp8_scaled.safetensors", CPU, torch.float32, fp8=fp8)
    kept = encoder.model.encoder.block[0].layer[1].DenseReluDense.wo.weight
    assert kept.dtype == (torch.float8_e4m3fn if fp8 else torch.float32)
    difference = (encoder.encode([CORPUS[0]])[0] - expected).norm() / expected.norm()
    assert 1e-4 < difference < 0.1, "three bits of mantissa"


@pytest.mark.parametrize("fp8", [False, True])
def test_umt5_whose_layers_come_in_turn_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp8: bool) -> None:
    monkeypatch.setattr(offloaded, "_RING", 1)
    path = tmp_path / "umt5.safetensors"
    save_atomic(umt5(64, 0), path)
    whole, waiting = (UMT5.load(path, CPU, torch.float32, fp8=fp8, offload=offload) for offload in (False, True))
    assert len(waiting.model.encoder.block[0].stream.packed) == 2
    for found, expected in zip(waiting.encode(CORPUS[:2]), whole.encode(CORPUS[:2]), strict=True):
        assert torch.equal(found, expected)


def test_a_whole_file_can_be_held_in_fp8(tmp_path: Path) -> None:
    save_atomic(umt5(64, 0), tmp_path / "umt5.safetensors")
    expected = UMT5.load(tmp_path / "umt5.safetensors", CPU, torch.bfloat16).encode([CORPUS[0]])[0].float()
    encoder = UMT5.load(tmp_path / "umt5.safetensors", CPU, torch.bfloat16, fp8=True)
    assert encoder.model.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float8_e4m3fn
    assert encoder.model.shared.weight.dtype == torch.bfloat16
    difference = (encoder.encode([CORPUS[0]])[0].float() - expected).norm() / expected.norm()
    assert 1e-3 < difference < 0.1, "three bits of mantissa"


def test_another_model_is_rejected_by_name(shared: Path) -> None:
    with pytest.raises(UserError, match="is a Wan VAE; --t5 expects a umt5-xxl text encoder"):
        UMT5.load(shared / "golden/vae_te/wan_vae.safetensors", CPU, torch.bfloat16)


def test_captions_are_cleaned_and_end_with_the_end_token(spiece: bytes) -> None:
    assert clean("  caf\u00c3\u00a9 &amp;amp;\n\t tea\u3000 ") == "caf\u00e9 & tea"
    tokenizer = from_sentencepiece(spiece, "test")
    rows = tokenizer.encode_batch(["a cat", "", "\u732b\U0001f600", "cat " * 2000], 512)
    assert all(row[-1] == 1 for row in rows)
    assert rows[1] == [1]
    assert len(rows[3]) == 512
    assert 2 not in rows[2], "characters outside the vocabulary are spelt in bytes, not unknown"


def test_ids_equal_those_of_hugging_faces_tokenizer(spiece: bytes, tmp_path: Path) -> None:
    """On characters of the vocabulary: its conversion of a bare SentencePiece model does not spell others in bytes."""
    from transformers import T5Tokenizer

    (tmp_path / "spiece.model").write_bytes(spiece)
    theirs = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    captions = [CORPUS[3], "a  space\n cat, the dog", "plain words", ""]
    ours = from_sentencepiece(spiece, "test").encode_batch(captions, 512)
    assert ours == [theirs(clean(caption))["input_ids"] for caption in captions]


def test_order_folder_beside_then_inside_then_hub(spiece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "umt5.safetensors"
    monkeypatch.setattr(tokenizers, "_from_hub_cache", lambda _: from_sentencepiece(spiece, "hub"))
    assert find_tokenizer(weights, None, 0).source == "hub"
    assert find_tokenizer(weights, spiece, 0).source == f"{weights} (spiece_model)"
    folder = tmp_path / "google" / "umt5-xxl"
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece)
    assert find_tokenizer(weights, spiece, 0).source == str(folder / "spiece.model")
    shutil.rmtree(tmp_path / "google")
    (tmp_path / "spiece.model").write_bytes(spiece)
    assert find_tokenizer(weights, spiece, 0).source == str(tmp_path / "spiece.model")


def test_without_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        find_tokenizer(tmp_path / "umt5.pth", None, 0)
    assert "umt5_xxl_fp16.safetensors" in str(refused.value)
    assert str(tmp_path / "google/umt5-xxl") in str(refused.value)


def test_a_tokenizer_of_another_model_is_rejected(spiece: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="they do not belong together"):
        find_tokenizer(tmp_path / "umt5.safetensors", spiece, 100)
    with pytest.raises(UserError, match="SentencePiece model"):
        find_tokenizer(tmp_path / "umt5.safetensors", b"not one", 0)


def test_a_tokenizer_that_is_not_there_is_said_without_asking_the_internet(tmp_path: Path) -> None:
    """In a process whose network is a trap."""
    script = (
        "import socket, sys\n"
        "def trap(*args, **kwargs): print('ASKED THE INTERNET'); raise OSError('no network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = trap\n"
        "from pathlib import Path\n"
        "from musubi_backend import __main__ as command_line\n"
        "command_line._keep_libraries_quiet()\n"
        "from musubi_backend.encoders.tokenizer import find_tokenizer\n"
        "from musubi_backend.errors import UserError\n"
        "try: find_tokenizer(Path(sys.argv[1]) / 't5.safetensors', None, 0)\n"
        "except UserError as error: print(error)\n"
    )
    backend = Path(tokenizers.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(backend), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=True)
    assert "no tokenizer for" in done.stdout
    assert "ASKED" not in done.stdout
