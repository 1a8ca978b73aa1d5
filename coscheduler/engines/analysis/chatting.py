"""Conversations with clients: several at once, each in a sequence of the one context.

A run serves all requests that are there and ends when none is left; more may come while it lasts.
A request waits until a sequence and as many cells as it may need are free. What a session's
sequence held is saved at the end of each answer, so that nothing is lost whatever becomes of the
context.
"""

import codecs
import time
from collections.abc import Generator, Sequence

from coscheduler.chat import Broken, ChatParameters, Ended, HangUp, Letter, Message, Question, Said
from coscheduler.engines.analysis.answering import Answer, Call, Drawing, Round
from coscheduler.engines.analysis.chat import ChatFormat
from coscheduler.engines.analysis.native import Model
from coscheduler.engines.analysis.sampling import Sampling
from coscheduler.engines.analysis.sequences import Context
from coscheduler.engines.analysis.states import States
from coscheduler.engines.base import Mailbox, Slice
from coscheduler.errors import CoschedulerError, Refused

TOKENS_MAX = 1024  # of an answer, where the request names no number
ANSWER_SHARE = 4  # a conversation leaves at least a quarter of the context for the answer
TOP_K = 40


class Speech:
    """Text out of bytes: characters whole, nothing of a stop text, nothing twice."""

    def __init__(self, stop: Sequence[str], sent_count: int) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._sent_count = sent_count
        self.is_stopped = False

    def add(self, data: bytes) -> None:
        """Take in more bytes of the answer; behind a stop text nothing counts."""
        if self.is_stopped:
            return
        start = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text += self._decoder.decode(data)
        found = [self._text.find(stop, start) for stop in self._stop]
        if hits := [place for place in found if place >= 0]:
            self._text = self._text[: min(hits)]
            self.is_stopped = True

    def take(self, *, is_whole: bool) -> str:
        """What may be said now that was not said before: not what may become a stop text."""
        end = len(self._text) - (0 if is_whole or self.is_stopped else self._held_back())
        text = self._text[self._sent_count : end]
        self._sent_count += len(text)
        return text

    def _held_back(self) -> int:
        """Characters at the end with which a stop text may begin."""
        return max(
            (
                count
                for stop in self._stop
                for count in range(1, len(stop))
                if self._text.endswith(stop[:count])
            ),
            default=0,
        )


class Talk:
    """One request on its way."""

    def __init__(self, question: Question) -> None:
        self.id = question.id
        self.parameters = question.parameters
        self.drawn = question.drawn
        self.speech = Speech(question.parameters.stop, question.sent_count)
        self.came_ns = time.monotonic_ns()
        self.call: Call | None = None
        self.drawing: Drawing | None = None
        self.dropped_count = self.reused_count = self.told_count = 0
        self.admitted_ns = self.read_ns = 0

    @property
    def needed_cells(self) -> int:
        """Cells of the cache that it may come to need."""
        assert self.call is not None
        return self.call.size


class Chatting:
    """One run."""

    def __init__(
        self, model: Model, chat: ChatFormat, context: Context, n_ctx: int, n_batch: int,
        states: States, mail: Mailbox,
    ) -> None:  # fmt: skip
        self._model = model
        self._chat = chat
        self._context = context
        self._n_ctx = n_ctx
        self._states = states
        self._mail = mail
        self._turns = Round(context, n_batch)
        self._waiting: list[Talk] = []
        self._talking: list[Talk] = []
        self.token_count = self.answer_count = 0

    def run(self, expected_count: int) -> Generator[Slice]:
        """Serve at least the requests that were announced, and those that come meanwhile."""
        for _ in range(expected_count):
            self._take(self._mail.wait())
        try:
            while True:
                for letter in self._mail.take():
                    self._take(letter)
                self._admit()
                if not self._talking:
                    return
                drawings = [talk.drawing for talk in self._talking if talk.drawing is not None]
                self._turns.slice(drawings, self._tell)
                self._end_those_done()
                yield Slice(0, 0, f"{len(self._talking)} answers")
        finally:
            for talk in self._talking:
                assert talk.drawing is not None
                talk.drawing.close()

    # -- letters

    def _take(self, letter: Letter) -> None:
        if isinstance(letter, HangUp):
            self._hang_up(letter.id)
            return
        talk = Talk(letter)
        try:
            self._prepare(talk)
        except CoschedulerError as error:
            self._break(talk, error)
        else:
            self._waiting.append(talk)

    def _hang_up(self, name: str) -> None:
        self._waiting = [talk for talk in self._waiting if talk.id != name]
        for talk in self._talking:
            if talk.id == name and talk.drawing is not None:
                talk.drawing.close()
                self._leave(talk)
        self._talking = [talk for talk in self._talking if talk.id != name]

    def _break(self, talk: Talk, error: CoschedulerError) -> None:
        self._mail.send(Broken(talk.id, error.kind, error.reason, error.message, error.numbers))

    # -- prompts

    def _prepare(self, talk: Talk) -> None:
        """Make the call. Raises Refused CHAT_TOO_LONG, EngineFault CHAT_TEMPLATE_INVALID."""
        asked = talk.parameters
        messages = list(asked.messages)
        prompt = self._prompt(messages)
        least = min(asked.tokens_max or self._n_ctx, self._n_ctx // ANSWER_SHARE)
        while len(prompt) + least > self._n_ctx and asked.overflow == "drop":
            if not _drop_oldest(messages):
                break
            talk.dropped_count = len(asked.messages) - len(messages)
            prompt = self._prompt(messages)
        if len(prompt) + least > self._n_ctx:
            raise _too_long(len(prompt), least, self._n_ctx, asked)
        tokens_max = min(asked.tokens_max or TOKENS_MAX, self._n_ctx - len(prompt))
        top_k = TOP_K if asked.temperature else 1
        sampling = Sampling(asked.temperature, top_k, asked.top_p, asked.seed)
        talk.call = Call(tuple(prompt), 0, tokens_max, sampling, asked.schema_object)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        text = self._chat.prompt([message.model_dump() for message in messages])
        add_special = not self._chat.starts_with_bos(text)
        return self._model.tokenize(text, add_special=add_special, parse_special=True)

    # -- sequences

    def _admit(self) -> None:
        """Begin with those that came first, as far as sequences and cells go."""
        while self._waiting:
            talk = self._waiting[0]
            taken = {entry.drawing.sequence for entry in self._talking if entry.drawing}
            free = [n for n in range(self._context.sequence_count) if n not in taken]
            cells = sum(entry.needed_cells for entry in self._talking)
            if not free or cells + talk.needed_cells > self._n_ctx:
                return
            del self._waiting[0]
            try:
                self._begin(talk, free[0])
            except CoschedulerError as error:
                self._break(talk, error)

    def _begin(self, talk: Talk, sequence: int) -> None:
        """Raises EngineFault GRAMMAR_INVALID, SCHEMA_UNSUPPORTED."""
        assert talk.call is not None
        talk.admitted_ns = time.monotonic_ns()
        answer = Answer(bytearray(map_pieces(self._model, talk.drawn)), list(talk.drawn))
        self._context.rewind(0, sequence)
        drawing = Drawing(self._model, self._context, talk.call, answer, sequence, 0)
        drawing.held = self._reuse(drawing)
        talk.reused_count = min(drawing.held, len(talk.call.prompt))
        talk.told_count = len(talk.drawn)
        talk.speech.add(bytes(answer.data))
        talk.drawing = drawing
        self._talking.append(talk)

    def _reuse(self, drawing: Drawing) -> int:
        """Tokens that a saved state spares reading; the last one is always read, for its logits."""
        found = self._states.longest(drawing.known[:-1])
        return self._states.restore(found, self._context, drawing.sequence) if found else 0

    # -- answers

    def _tell(self) -> None:
        """Pass on what every answer has got since the last time."""
        for talk in self._talking:
            drawing = talk.drawing
            assert drawing is not None
            tokens = drawing.answer.tokens[talk.told_count :]
            if not tokens and not drawing.is_done:
                continue
            talk.read_ns = talk.read_ns or time.monotonic_ns()
            talk.told_count += len(tokens)
            talk.speech.add(map_pieces(self._model, tokens))
            if talk.speech.is_stopped and not drawing.is_done:
                drawing.answer.finish = "stop"
                drawing.close()
            text = talk.speech.take(is_whole=drawing.is_done)
            if text or tokens:
                self._mail.send(Said(talk.id, text, tuple(tokens)))

    def _end_those_done(self) -> None:
        for talk in [entry for entry in self._talking if entry.drawing and entry.drawing.is_done]:
            self._talking.remove(talk)
            self._leave(talk)
            self._mail.send(_ended(talk))

    def _leave(self, talk: Talk) -> None:
        """Save a session, and give the cells back."""
        drawing = talk.drawing
        assert drawing is not None
        self.answer_count += 1
        self.token_count += drawing.answer.token_count
        if talk.parameters.session:
            key = f"session:{talk.parameters.session}"
            held = drawing.known[: drawing.held]
            self._states.save(self._context, drawing.sequence, key, held)
        self._context.rewind(0, drawing.sequence)


def map_pieces(model: Model, tokens: Sequence[int]) -> bytes:
    """The bytes of some tokens."""
    return b"".join(model.piece(token) for token in tokens)


def _drop_oldest(messages: list[Message]) -> bool:
    """Take the oldest turn out, with the answer to it; False when only the last one is left."""
    first = 1 if messages[0].role == "system" else 0
    if len(messages) - first < 2:
        return False
    del messages[first]
    while messages[first].role == "assistant":
        del messages[first]
    return True


def _too_long(prompt_count: int, least: int, n_ctx: int, asked: ChatParameters) -> Refused:
    hint = "" if asked.overflow == "drop" else "; begin anew, or let the oldest turns be dropped"
    return Refused(
        "CHAT_TOO_LONG",
        f"the conversation has {prompt_count} tokens, the answer is to have room for {least}, and "
        f"the context holds {n_ctx}{hint}",
        prompt_tokens=prompt_count,
        answer_tokens=least,
        n_ctx=n_ctx,
    )


def _ended(talk: Talk) -> Ended:
    drawing, now_ns = talk.drawing, time.monotonic_ns()
    assert drawing is not None
    assert talk.call is not None
    read_ns = talk.read_ns or now_ns
    return Ended(
        id=talk.id,
        finish=drawing.answer.finish,
        prompt_tokens=len(talk.call.prompt),
        completion_tokens=drawing.answer.token_count,
        reused_tokens=talk.reused_count,
        dropped_count=talk.dropped_count,
        queue_ms=(talk.admitted_ns - talk.came_ns) // 1_000_000,
        prefill_ms=(read_ns - talk.admitted_ns) // 1_000_000,
        decode_ms=(now_ns - read_ns) // 1_000_000,
    )
