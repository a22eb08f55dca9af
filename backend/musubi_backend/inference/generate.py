"""The generate verb: prompts in, videos out.

All text is encoded first, then the transformer samples every prompt, then the VAE decodes every result, so that each model
is loaded once and only one is in memory at a time. A finished sample is never lost: if what follows fails or is stopped,
its latents are written.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import atomic, events, job, place
from ..architectures.request import AddedLoRA, SampleRequest
from ..console import Bar
from ..counted import counted
from ..device import pick_device, release
from ..errors import StopRequested, UserError
from ..layers.experts import boundary_of, experts_of
from ..lora.changing import ChangingLoRA
from ..weights.loader import open_weights
from ..weights.safetensors_file import save_atomic, split_files
from ..weights.streamed_file import refuse_inputs
from . import outputs
from .prompts import parse_line, read_lines
from .requests import build_request
from .settings import GenerateSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..architectures.protocol import Architecture

    Text = dict[str, Tensor]

logger = logging.getLogger(__name__)

PROBLEMS = (UserError, RuntimeError, OSError)  # what one prompt may fail with while the others continue


@dataclass
class Result:
    """A finished sample on its way to its files. suffix: see `outputs`; written: nothing of it can be lost any more."""

    label: str
    request: SampleRequest
    latents: Tensor
    stem: str
    suffix: str
    written: bool = False


def run(args: Namespace, architecture: Architecture) -> None:
    """Generate what the arguments ask for. UserError for bad input, and at the end if some of several prompts failed."""
    settings = GenerateSettings.read(args)
    if settings.prompts.interactive and job.folder() is not None:
        raise UserError("--interactive reads prompts from a terminal; use --from_file in a job")
    session = Session(settings, architecture.configured(vars(args)))
    logger.info(f"Using device: {session.device}")
    if settings.output.latent_path:
        session.decode_files(settings.output.latent_path)
    elif settings.output.save_merged_model:
        session.save_merged(Path(settings.output.save_merged_model))
    elif settings.prompts.interactive:
        session.interactive()
    else:
        session.batch()
    logger.info("Done!")


class Session:
    """One run of the verb: its settings, the device, encoded texts and the model that is loaded just now."""

    def __init__(self, settings: GenerateSettings, architecture: Architecture) -> None:
        self.settings, self.output = settings, settings.output
        self.architecture = architecture
        self.device = pick_device(settings.device)
        self.folder = Path(settings.output.save_path)
        self.texts: dict[str, Text] = {}
        self.conditions: dict[str, Text] = {}
        self.transformer: torch.nn.Module | None = None
        self.loras = ChangingLoRA(architecture.card)

    def try_places(self) -> None:
        """See that what will be made can be written, once what is asked for is known to be possible. UserError where not."""
        output, card = self.output, self.architecture.card
        if output.save_merged_model and not output.latent_path:
            place.try_file(Path(output.save_merged_model), "--save_merged_model")
            return
        start = f"{outputs.new_stem(self.folder, 2**32, card.result_index)}{card.result_suffix}"
        ends = [f"_{Path(path).stem}" for path in output.latent_path or ()] or ["_latent"]
        files = [Path(f"{start}{end}.safetensors") for end in ends]
        names = [name for file in files for name in (file.name, atomic.part_of(file).name)]
        place.try_folder(self.folder, names, f"--save_path {self.folder}")

    def batch(self) -> None:
        """--prompt and --from_file."""
        failures: dict[str, str] = {}
        requests = self._requests(failures)
        self.try_places()
        self._encode(requests, failures)
        results: list[Result] = []
        with self._keeping(results):
            self._sample_all(requests, results, failures)
            self._release_transformer()
            self._write_all(results, failures)
        total = len(requests | failures)
        if failures:
            listed = "\n".join(f"  {message}" for message in failures.values())
            raise UserError(f"{len(failures)} of {counted(total, 'prompt')} failed:\n{listed}")

    def interactive(self) -> None:
        """Prompt lines from the terminal until end of file. The transformer stays loaded, in system RAM where the device is a GPU."""
        self.try_places()
        print("Interactive mode. Enter prompts (Ctrl+D or Ctrl+Z (Windows) to exit):")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print("\nExiting interactive mode")
                return
            if not line:
                continue
            results: list[Result] = []
            try:
                with self._keeping(results):
                    values = parse_line(line, self.architecture.line_options, "prompt")
                    request = build_request(values, self.settings, self.architecture)
                    self._encode({"prompt": request}, {})
                    self._sample("prompt", request, "", results)
                    self._park_transformer()
                    self._write_all(results, {})
            except PROBLEMS as error:
                logger.error(str(error))

    def decode_files(self, paths: Sequence[str]) -> None:
        """--latent_path: decode saved latents again."""
        card = self.architecture.card
        files = [(path, outputs.load_latents(path, card)) for path in paths]
        self.try_places()
        decoder = self.architecture.latent_decoder(self.device)
        for path, saved in files:
            logger.info(f"Loaded latent from {path}. Shape: {saved.latents.shape}")
            name = f"{self._stem(saved.seed)}{card.result_suffix}_{Path(path).stem}"
            self._write(self._decode(decoder, saved.latents), name, saved.metadata)

    def save_merged(self, path: Path) -> None:
        """--save_merged_model: the transformer with the LoRAs in its weights, as one file; of two experts each as one. UserError when
        that would replace a file it is made of."""
        self.try_places()
        sources = self.architecture.weight_files()
        targets = {name: path.with_stem(f"{path.stem}-{name}") if name else path for name in sources}
        parts = [part for source in sources.values() for part in split_files(source)]
        refuse_inputs(targets.values(), [*parts, *self.architecture.lora_files()], "--save_merged_model")
        for name, model in experts_of(self._transformer()).items():
            logger.info(f"Saving merged model to {targets[name]}")
            save_atomic(model.state_dict(), targets[name], open_weights(sources[name]).header.metadata)
            logger.info("Merged model saved")
            job.emit(events.Output("model", str(targets[name])))

    def _requests(self, failures: dict[str, str]) -> dict[str, SampleRequest]:
        """Every good prompt under its label. A bad line of a file is reported at once and skipped, unless all are bad."""
        prompts = self.settings.prompts
        if not prompts.from_file:
            return {"prompt": build_request({"prompt": prompts.prompt}, self.settings, self.architecture)}
        requests: dict[str, SampleRequest] = {}
        for number, line in read_lines(prompts.from_file):
            label = f"{prompts.from_file} line {number}"
            try:
                requests[label] = self._line_request(label, line)
            except UserError as error:
                _report(failures, label, error)
        if not requests:
            raise UserError("\n".join(["no usable prompt:", *failures.values()]))
        return requests

    def _line_request(self, label: str, line: str) -> SampleRequest:
        values = parse_line(line, self.architecture.line_options, label)
        try:
            return build_request(values, self.settings, self.architecture)
        except UserError as error:
            raise UserError(f"{label}: {error}") from error

    def _encode(self, requests: dict[str, SampleRequest], failures: dict[str, str]) -> None:
        """Encode the texts that are new and the images, and free the encoders. Requests whose images cannot be used fail."""
        self._encode_texts([text for request in requests.values() for text in self.architecture.texts(request)])
        self._encode_images(requests, failures)

    def _encode_texts(self, texts: list[str]) -> None:
        wanted = [text for text in texts if text not in self.texts]
        if not wanted:
            return
        logger.info("Loading text encoder to encode all prompts")
        job.phase("loading the text encoder")
        encoder = self.architecture.text_encoder(self.device)
        for text in dict.fromkeys(wanted):
            self.texts[text] = {name: tensor.cpu() for name, tensor in encoder.encode([text])[0].items()}
        del encoder
        release(self.device)

    def _encode_images(self, requests: dict[str, SampleRequest], failures: dict[str, str]) -> None:
        encoder = self.architecture.condition_encoder(self.device)
        if encoder is None:
            return
        alone = len(requests) == 1
        for label, request in list(requests.items()):
            try:
                self.conditions[label] = {name: tensor.cpu() for name, tensor in encoder.encode(request).items()}
            except PROBLEMS as error:
                if alone:
                    raise
                _report(failures, label, error)
                del requests[label]
        del encoder
        release(self.device)

    def _sample_all(self, requests: Mapping[str, SampleRequest], results: list[Result], failures: dict[str, str]) -> None:
        if not requests:  # not one had images that can be used
            return
        suffix = "" if self.settings.prompts.from_file else self.architecture.card.result_suffix
        self._transformer()  # what is wrong with the model is no single prompt's fault
        for index, (label, request) in enumerate(requests.items(), start=1):
            logger.info(f"Processing prompt {index}/{len(requests)}: {request.prompt[:50]}...")
            job.phase(f"prompt {index} of {len(requests)}")
            try:
                self._sample(label, request, suffix, results)
                _say_what_is_not_written(results)
            except PROBLEMS as error:
                if len(requests) == 1:
                    raise
                _report(failures, label, error)

    def _sample(self, label: str, request: SampleRequest, suffix: str, results: list[Result]) -> None:
        """Sample one request and put it among the results."""
        transformer = self._transformer()
        lora = request.lora or AddedLoRA()
        self.loras.put_on(transformer, lora.path, lora.high_noise, lora.strength)
        logger.info(
            f"Video size: {request.height}x{request.width}@{request.frames} (HxW@F), fps: {self.output.fps}, "
            f"infer_steps: {request.steps}, flow_shift: {request.flow_shift}"
        )
        boundary = self.architecture.boundary()
        logger.info(
            f"Starting sampling (high noise: {boundary is not None}). Models: {1 if boundary_of(transformer) is None else 2}, "
            f"timestep boundary: {boundary}, flow shift: {request.flow_shift}, "
            f"guidance scale: {request.guidance_of(boundary is not None).scale}"
        )
        job.phase("sampling")
        with Bar(self.architecture.steps(request)) as bar:
            latents = self.architecture.sample(
                transformer,
                request,
                self.texts,
                self.conditions.get(label, {}),
                device=self.device,
                progress=bar.update,
            )
        result = Result(label, request, latents.cpu(), self._stem(request.seed), suffix)
        results.append(result)
        if self.output.output_type in outputs.LATENT_OUTPUTS:
            self._save_latents(result)

    def _stem(self, seed: int) -> str:
        return outputs.new_stem(self.folder, seed, self.architecture.card.result_index)

    def _write_all(self, results: list[Result], failures: dict[str, str]) -> None:
        """Decode and write every result, with one VAE."""
        if self.output.output_type == "latent" or not results:
            return
        logger.info("Decoding latents to videos/images")
        job.phase("decoding")
        decoder = self.architecture.latent_decoder(self.device)
        for index, result in enumerate(results, start=1):
            logger.info(f"Decoding output {index}/{len(results)}")
            try:
                video = self._decode(decoder, result.latents)
                self._write(video, result.stem + result.suffix, self.architecture.describe(result.request))
                result.written = True
                _say_what_is_not_written(results)
            except PROBLEMS as error:
                if len(results) == 1:
                    raise
                _report(failures, result.label, error)
        del decoder
        release(self.device)

    def _decode(self, decoder: Any, latents: Tensor) -> Tensor:
        logger.info(f"Decoding video from latents: {latents.shape}")
        video: Tensor = decoder.decode(latents.to(self.device))
        logger.info("Decoding complete")
        return video

    def _write(self, video: Tensor, name: str, metadata: Mapping[str, str]) -> None:
        kept = None if self.output.no_metadata else metadata
        if self.output.output_type in outputs.VIDEO_OUTPUTS:
            outputs.save_video(self.folder, name, video, self.output.fps, kept)
        if self.output.output_type in outputs.IMAGE_OUTPUTS:
            outputs.save_images(self.folder, name, video, kept)

    def _save_latents(self, result: Result) -> None:
        metadata = None if self.output.no_metadata else self.architecture.describe(result.request)
        outputs.save_latents(self.folder, result.stem, result.latents, metadata)
        result.written = True

    def _rescue(self, result: Result) -> None:
        """Save a result's latents where they belong or, if that fails, elsewhere."""
        try:
            self._save_latents(result)
        except OSError as error:
            logger.error("%s", place.in_words(error))
            metadata = None if self.output.no_metadata else self.architecture.describe(result.request)
            kept = place.elsewhere(lambda folder: outputs.save_latents(folder, result.stem, result.latents, metadata))
            result.written = True
            logger.error("%s could not be written into %s; its latent is %s", result.label, self.folder, kept)

    @contextmanager
    def _keeping(self, results: list[Result]) -> Iterator[None]:
        """However the block ends, results that did not reach a file are saved as latents; a stop says so."""
        stopped: StopRequested | None = None
        unwritten: list[Result] = []
        try:
            yield
        except StopRequested as stop:
            stopped = stop
        finally:
            unwritten += [result for result in results if not result.written]
            for result in unwritten:
                self._rescue(result)
                logger.info("Decode it with --latent_path")
            job.keep("")
        if stopped is not None:
            saved = f"saved as latents: {counted(len(unwritten), 'finished sample')}" if unwritten else "every finished sample is saved"
            raise StopRequested(f"{stopped}; {saved if results else 'no sample was finished'}")

    def _transformer(self) -> torch.nn.Module:
        if self.transformer is None:
            logger.info("Loading DiT model(s)")
            job.phase("loading the transformer")
            self.transformer = self.architecture.transformer(self.device, self.architecture.generating_dtype(self.device))
        return self.transformer.to(self.device)

    def _park_transformer(self) -> None:
        if self.transformer is not None:
            self.transformer.to("cpu")
            release(self.device)

    def _release_transformer(self) -> None:
        self.loras = ChangingLoRA(self.architecture.card)
        self.transformer = None
        release(self.device)


def _say_what_is_not_written(results: list[Result]) -> None:
    """To the runner, which then waits for it when the job is stopped."""
    count = sum(not result.written for result in results)
    job.keep(counted(count, "finished sample") if count else "")


def _report(failures: dict[str, str], label: str, error: Exception) -> None:
    message = str(error) if label in str(error) else f"{label}: {error}"
    failures[label] = message
    logger.error(message)
