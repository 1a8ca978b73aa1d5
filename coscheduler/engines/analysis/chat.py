"""From messages to the model's own prompt, with the chat template of the GGUF file.

Chat templates are programs of strangers: they run in a sandbox. Text of a transcript must not pass
for control tokens (a speaker may say, or a client may send, "<|im_end|>"), so such texts are
broken up before the template is applied.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coscheduler.errors import EngineFault

Messages = Sequence[dict[str, str]]


class ChatFormat:
    """How one model wants to be spoken to."""

    def __init__(
        self, template: str, bos_text: str, eos_text: str, control_texts: Sequence[str]
    ) -> None:
        """Raises EngineFault CHAT_TEMPLATE_INVALID when the template is not Jinja2.

        An empty template (a base model) means: the messages as plain paragraphs.
        """
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._control = re.compile("|".join(re.escape(text) for text in control_texts) or r"(?!)")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(template) if template else None
        except jinja2.TemplateSyntaxError as error:
            raise _invalid(error) from None

    def prompt(self, messages: Messages) -> str:
        """The text to complete. A template without a system role gets it as part of the user's
        turn.

        Raises EngineFault CHAT_TEMPLATE_INVALID when the template fails on these messages.
        """
        safe = [message | {"content": self.defused(message["content"])} for message in messages]
        if self._template is None:
            return "\n\n".join(message["content"] for message in safe) + "\n\n"
        try:
            return self._render(safe)
        except jinja2.TemplateError:
            return self._render_merged(safe)

    def defused(self, text: str) -> str:
        """The text with a space inside whatever the tokenizer would take for a control token."""
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def starts_with_bos(self, prompt: str) -> bool:
        """Whether the template has put the BOS token there itself."""
        bos = self._special["bos_token"]
        return bool(bos) and prompt.startswith(bos)

    def _render(self, messages: Messages) -> str:
        assert self._template is not None
        values = {"messages": messages, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return self._template.render(values | self._special)
        except jinja2.TemplateError:
            raise
        except Exception as error:  # a stranger's program: it may raise anything
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error

    def _render_merged(self, messages: Messages) -> str:
        whole = "\n\n".join(message["content"] for message in messages)
        try:
            return self._render([{"role": "user", "content": whole}])
        except jinja2.TemplateError as error:
            raise _invalid(error) from None


def _raise(message: str) -> NoReturn:
    """`raise_exception` of chat templates."""
    raise jinja2.TemplateError(message)


def _invalid(error: jinja2.TemplateError) -> EngineFault:
    return EngineFault(
        "CHAT_TEMPLATE_INVALID", f"the model's chat template fails: {error.message or error}"
    )
