"""How text is looked for: a task's parameters as options of WhisperX's decoding."""

import dataclasses
from typing import Any

from coscheduler.engines.transcription.libraries import module
from coscheduler.errors import InvalidInput
from coscheduler.stages import TranscribeParameters


def with_code(parameters: TranscribeParameters) -> TranscribeParameters:
    """The parameters with the code of a language that was named: "German" is "de"."""
    name = parameters.language.lower()
    code = module("whisperx.utils").TO_LANGUAGE_CODE.get(name, name)
    return parameters.model_copy(update={"language": code})


def check(
    tokens: Any,
    is_multilingual: bool,
    model: str,
    beam_size_max: int,
    parameters: TranscribeParameters,
) -> None:
    """Whether the Whisper named `model`, with the Hugging Face tokenizer `tokens`, can do what is
    asked.

    Raises InvalidInput LANGUAGE_UNKNOWN, TASK_UNKNOWN or BEAM_TOO_WIDE.
    """
    language = parameters.language
    if is_multilingual:
        known = not language or tokens.token_to_id(f"<|{language}|>") is not None
    else:
        known = language in ("", "en")
    if not known:
        text = f"the model does not know the language {language!r}"
        raise InvalidInput("LANGUAGE_UNKNOWN", text, language=language, model=model)
    if parameters.task == "translate" and not is_multilingual:
        text = f"{model} knows English alone and cannot translate; transcribe, or use another model"
        raise InvalidInput("TASK_UNKNOWN", text, task=parameters.task, model=model)
    if (parameters.beam_size or 0) > beam_size_max:
        raise InvalidInput(
            "BEAM_TOO_WIDE",
            f"beam_size {parameters.beam_size} is more than memory was planned for; at most "
            f"{beam_size_max}, which beam_size in the config's [transcription] says",
            beam_size=parameters.beam_size, beam_size_max=beam_size_max,
        )  # fmt: skip


def tokenizer(whisper: Any, language: str, parameters: TranscribeParameters) -> Any:
    """A tokenizer of the task's own: the pipeline would keep the last one after a cancel."""
    return module("faster_whisper.tokenizer").Tokenizer(
        whisper.hf_tokenizer,
        whisper.model.is_multilingual,
        task=parameters.task,
        language=language,
    )


def options(pipeline: Any, tokens: Any, parameters: TranscribeParameters, beam_size: int) -> Any:
    """faster-whisper's TranscriptionOptions; the pipeline's own stay as they are."""
    suppressed = list(parameters.suppress_tokens)
    if parameters.suppress_numerals:
        suppressed += module("whisperx.asr").find_numeral_symbol_tokens(tokens)
    return dataclasses.replace(
        pipeline.options,
        beam_size=parameters.beam_size or beam_size,
        patience=parameters.patience,
        length_penalty=parameters.length_penalty,
        suppress_tokens=sorted(set(suppressed)),
        initial_prompt=parameters.initial_prompt or None,
        hotwords=parameters.hotwords or None,
    )
