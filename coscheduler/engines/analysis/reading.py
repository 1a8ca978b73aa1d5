"""How a transcript of any length is read within one context.

1. Nothing was said: there is nothing to ask.
2. It fits: one call.
3. It does not, and the policy says "refuse": refused, with the numbers.
4. "fold": the oldest turns become notes, piece by piece; one call about notes and newest turns.
5. "split": pieces, cut at turns.
   a. one item for each turn: the items in a row; what an answer was cut before is asked again;
   b. "refine": each call gets the answer so far and the next piece;
   c. "map", "tree": each piece for itself, then the answers are joined, or merged by the model.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coscheduler.engines.analysis import catalogue, citing, pieces, request
from coscheduler.engines.analysis.answering import Answer, Attempt, Call, Conversation
from coscheduler.engines.analysis.kept import Kept
from coscheduler.engines.analysis.pieces import Piece
from coscheduler.engines.analysis.request import Request
from coscheduler.engines.analysis.transcript import Turn
from coscheduler.engines.base import Slice
from coscheduler.errors import EngineFault

MERGE_SHARE = 4  # an answer that is to be merged takes at most a quarter of the room
FOLD_SHARE = 8
TREE_GROUP_MAX = 4
CUT_ATTEMPTS_MAX = 5
COUNT_SLICE_TURNS = 256

Value = dict[str, Any]
Steps = Generator[Slice, None, Value]


@dataclass(frozen=True)
class Record:
    """One call that was made: what it was about and what it took."""

    what: str  # "whole", "piece", "notes", "merge"
    first_segment: int | None
    last_segment: int | None
    prompt_tokens: int
    completion_tokens: int
    finish: str
    resumed: bool


@dataclass
class Outcome:
    """The answer, with numbers of turns in it, and how it came about.

    `how`: "whole", "split", "folded", or "silent" where nothing was said.
    """

    value: Value = field(default_factory=dict)
    how: str = "whole"
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    """A call that is to be made: what it is about, and which piece it is."""

    call: Call
    what: str
    turns: Sequence[Turn]
    number: int = 0


class Reading:
    """One request, answered on one context."""

    def __init__(self, asked: Request, conversation: Conversation, kept: Kept) -> None:
        self._asked = asked
        self._conversation = conversation
        self._kept = kept
        self._done = self._total = self._planned = 0  # tokens: done, of all calls, of each call
        self.outcome = Outcome()

    def run(self) -> Generator[Slice]:
        """Fill `outcome`. Raises EngineFault TRANSCRIPT_TOO_LONG, PIECE_TOO_SMALL,
        OUTPUT_TRUNCATED, OUTPUT_INVALID or DECODE_FAILED.
        """
        asked = self._asked
        turns = asked.transcript.turns
        if not turns and asked.template.schema is not None:
            self._be_silent(asked.template.schema)
            return
        yield from self._count(turns)
        policy = asked.parameters.overflow
        whole: Call | None = None
        if policy == "refuse" or asked.may_fit():
            whole = asked.call(request.whole(turns), asked.schema_for(turns), asked.tokens_max)
        if whole is not None and whole.size <= asked.n_ctx and len(turns) <= asked.turns_max:
            self._plan(1, whole.size)
            self.outcome.value = yield from self._surely(whole, "whole", turns, "")
        elif whole is not None and policy == "refuse":
            raise _too_long(whole, asked.n_ctx)
        elif policy == "fold" and not asked.template.per_turn:
            self.outcome.how = "folded"
            self.outcome.value = yield from self._folded()
        else:
            self.outcome.how = "split"
            self.outcome.value = yield from self._split()

    def _count(self, turns: Sequence[Turn]) -> Generator[Slice]:
        """Count every turn of a long transcript, in slices; the counts are kept."""
        for start in range(0, len(turns) - COUNT_SLICE_TURNS, COUNT_SLICE_TURNS):
            for turn in turns[start : start + COUNT_SLICE_TURNS]:
                self._asked.count(turn.line + "\n")
            yield Slice(0, 0, "counting tokens")

    def _be_silent(self, schema: dict[str, Any]) -> None:
        empty: dict[str, Any] = {"array": [], "string": ""}
        parts = schema.get("properties", {}).items()
        self.outcome.value = {key: empty.get(part.get("type")) for key, part in parts}
        self.outcome.how = "silent"

    # -- long ones

    def _split(self) -> Steps:
        asked = self._asked
        if asked.template.per_turn:
            return (yield from self._turn_by_turn())
        if asked.parameters.mode == "refine":
            answer_max = min(asked.tokens_max, asked.room // MERGE_SHARE)
            parts = self._cut(asked, asked.transcript.turns, answer_max, answer_max)
            self._plan(len(parts), asked.n_ctx)
            return (yield from self._refined(asked, parts, answer_max, "piece"))
        return (yield from self._mapped())

    def _turn_by_turn(self) -> Steps:
        asked = self._asked
        answer_max = min(asked.tokens_max, asked.room // 2)
        waiting = deque(self._cut(asked, asked.transcript.turns, answer_max, 0, overlap_turns=0))
        count = len(waiting)
        self._plan(count, asked.n_ctx)
        answers: list[Value] = []
        while waiting:
            piece = waiting.popleft()
            note = f"piece {count - len(waiting)} of {count}: "
            call = asked.call(request.whole(piece.turns), asked.schema_for(piece.turns), answer_max)
            answers.append((yield from self._surely(call, "piece", piece.turns, note)))
            rest = piece.turns[_length(answers[-1]) :]
            if rest:  # the answer was cut before them
                waiting.appendleft(Piece(rest))
                count += 1
                self._total += asked.n_ctx
        return citing.joined(answers, unique=False)

    def _mapped(self) -> Steps:
        asked = self._asked
        is_join = asked.template.merge == "join" and asked.template.schema is not None
        size_max = asked.piece_size_max
        room = asked.room - (asked.n_ctx - size_max)
        answer_max = min(asked.tokens_max, room // (2 if is_join else MERGE_SHARE))
        parts = self._cut(asked, asked.transcript.turns, answer_max, 0, size_max=size_max)
        self._plan(len(parts) + (0 if is_join else -(-len(parts) // 2)), asked.n_ctx)
        wanted = []
        for number, piece in enumerate(parts, 1):
            call = asked.call(
                request.part(number, len(parts), piece.turns),
                asked.schema_for(piece.turns),
                answer_max,
            )
            wanted.append(_Wanted(call, "piece", piece.turns, number))
        answers: list[Value] = []
        for group in self._side_by_side(wanted):
            numbers = "-".join(dict.fromkeys(str(group[end].number) for end in (0, -1)))
            note = f"piece {numbers} of {len(parts)}: "
            for one, answer in zip(group, (yield from self._calls(group, note)), strict=True):
                if answer is None:
                    self._leave_out(one.number, len(parts), answer_max)
                else:
                    answers.append(answer)
        if not answers:
            raise _nothing_whole(answer_max, len(parts))
        if is_join:
            return citing.joined(answers, unique=True)
        return (yield from self._merged(answers, answer_max))

    def _refined(self, asked: Request, parts: Sequence[Piece], answer_max: int, what: str) -> Steps:
        """One answer, brought up to date piece by piece."""
        so_far: Value | None = None
        for number, piece in enumerate(parts, 1):
            numbers = {turn.number for turn in piece.turns} | citing.numbers_in(so_far)
            if so_far is None:
                text = request.part(number, len(parts), piece.turns)
            else:
                text = request.next_part(number, len(parts), so_far, piece.turns)
            call = asked.call(text, asked.schema_citing(numbers), answer_max)
            note = f"{what} {number} of {len(parts)}: "
            answer = yield from self._call(call, what, piece.turns, note)
            if answer is None:
                self._leave_out(number, len(parts), answer_max)
            so_far = answer or so_far
        if so_far is None:
            raise _nothing_whole(answer_max, len(parts))
        return so_far

    def _folded(self) -> Steps:
        """Notes of the oldest turns, then one call about the notes and the newest turns."""
        asked = self._asked
        notes_template = catalogue.load(catalogue.FOLD)
        answer_max = min(asked.tokens_max, asked.room // 2)
        notes_max = min(notes_template.tokens_max, asked.room // FOLD_SHARE)
        folding = replace(asked, template=notes_template, variables={})
        wrapped = asked.count(request.with_notes({"notes": []}, ()))
        room = asked.room - answer_max - 2 * notes_max - wrapped
        older, newest = pieces.newest(asked.transcript.turns, asked.count, room)
        parts = self._cut(folding, older, notes_max, notes_max)
        self._plan(len(parts) + 1, asked.n_ctx)
        notes = yield from self._refined(folding, parts, notes_max, "notes")
        numbers = {turn.number for turn in newest} | citing.numbers_in(notes)
        text = request.with_notes(notes, newest)
        call = asked.call(text, asked.schema_citing(numbers), answer_max)
        return (yield from self._surely(call, "whole", newest, ""))

    def _merged(self, answers: list[Value], answer_max: int) -> Steps:
        """Neighbouring answers are made one, until there is one."""
        asked = self._asked
        group_max = TREE_GROUP_MAX if asked.parameters.mode == "tree" else len(answers)
        while len(answers) > 1:
            fewer: list[Value] = []
            for group in self._groups(answers, asked.room - answer_max, group_max):
                one = group[0] if len(group) == 1 else (yield from self._one_of(group, answer_max))
                fewer.append(one)
            answers = fewer
        return answers[0]

    def _one_of(self, group: Sequence[Value], answer_max: int) -> Steps:
        """One answer of several; where the model gives none that is whole, their lists joined."""
        asked = self._asked
        schema = asked.schema_citing(citing.numbers_in(list(group)))
        call = asked.call(request.to_merge(group), schema, answer_max)
        merged = yield from self._call(call, "merge", (), f"merging {len(group)} answers: ")
        return merged or citing.joined(group, unique=True)

    def _groups(
        self, answers: Sequence[Value], tokens_max: int, group_max: int
    ) -> list[list[Value]]:
        """Neighbours that fit one prompt together, two at least.

        Raises EngineFault TRANSCRIPT_TOO_LONG.
        """
        groups: list[list[Value]] = [[]]
        for answer in answers:
            group = [*groups[-1], answer]
            size = self._asked.count(request.to_merge(group))
            if len(group) > 2 and (size > tokens_max or len(group) > group_max):
                groups.append([answer])
            elif size > tokens_max:
                raise EngineFault(
                    "TRANSCRIPT_TOO_LONG",
                    f"two answers of {size} tokens in all cannot be merged in {tokens_max}",
                    tokens=size,
                    tokens_max=tokens_max,
                )
            else:
                groups[-1] = group
        return groups

    def _cut(
        self,
        asked: Request,
        turns: Sequence[Turn],
        answer_max: int,
        so_far_max: int,
        overlap_turns: int | None = None,
        size_max: int | None = None,
    ) -> tuple[Piece, ...]:
        """Pieces whose whole prompts fit: what is said around them is measured, not guessed.

        `so_far_max`: tokens to leave for an answer that stands before a piece. A call takes at most
        `size_max` tokens (None: the whole context).
        """
        size_max = size_max or asked.n_ctx
        overlap = asked.parameters.overlap_turns if overlap_turns is None else overlap_turns
        fixed = asked.count(request.next_part(999, 999, {}, ())) + 2 * so_far_max
        room = asked.room - (asked.n_ctx - size_max) - answer_max - fixed
        if asked.template.answer_ratio:
            room = min(room, int(answer_max / asked.template.answer_ratio))
        for _ in range(CUT_ATTEMPTS_MAX):
            parts = pieces.cut(turns, asked.count, room, overlap, asked.turns_max)
            longest = max(len(asked.tokens(request.part(999, 999, part.turns))) for part in parts)
            excess = longest + 2 * so_far_max + answer_max - size_max
            if excess <= 0:
                return parts
            room -= excess
        raise EngineFault(
            "TRANSCRIPT_TOO_LONG", f"no piece fits {size_max} tokens", tokens_max=size_max
        )

    # -- one call

    def _plan(self, count: int, size: int) -> None:
        """Progress is told in tokens: so many calls of at most this size."""
        self._planned, self._total = size, count * size

    def _surely(self, call: Call, what: str, turns: Sequence[Turn], note: str) -> Steps:
        """The answer to a call that the result cannot do without."""
        value = yield from self._call(call, what, turns, note)
        if value is None:
            raise _nothing_whole(call.tokens_max, 1)
        return value

    def _call(
        self, call: Call, what: str, turns: Sequence[Turn], note: str
    ) -> Generator[Slice, None, Value | None]:
        """Ask, or take what was kept; None when the answer was cut before anything whole."""
        (value,) = yield from self._calls([_Wanted(call, what, turns)], note)
        return value

    def _side_by_side(self, wanted: Sequence["_Wanted"]) -> list[list["_Wanted"]]:
        """Neighbours that the context holds together."""
        groups: list[list[_Wanted]] = [[]]
        for one in wanted:
            group = groups[-1]
            cells = sum(other.call.size - other.call.shared_count for other in group)
            fits = cells + one.call.size <= self._asked.n_ctx
            if group and (not fits or len(group) == self._conversation.sequence_count):
                groups.append([])
            groups[-1].append(one)
        return groups

    def _calls(
        self, wanted: Sequence["_Wanted"], note: str
    ) -> Generator[Slice, None, list[Value | None]]:
        """Ask several at once; those of a group are kept together, for what they are drawn beside
        may decide the last bit of a score.
        """
        for one in wanted:
            if one.call.size > self._asked.n_ctx:
                raise _too_long(one.call, self._asked.n_ctx)
        kept = [self._kept.get(one.call) for one in wanted]
        answers = [answer for answer in kept if answer is not None]
        is_kept = len(answers) == len(wanted)
        before = self._done
        if not is_kept:
            answers = yield from self._draw(wanted, note)
        self._done = min(before + len(wanted) * self._planned, self._total)
        for one, answer in zip(wanted, answers, strict=True):
            record = _record(one.call, answer, one.what, one.turns, is_kept)
            self.outcome.records.append(record)
        return [self._value(one, answer) for one, answer in zip(wanted, answers, strict=True)]

    def _draw(self, wanted: Sequence["_Wanted"], note: str) -> Generator[Slice, None, list[Answer]]:
        attempts = [
            Attempt(one.call, self._kept.begun(one.call) or Answer(), self._kept.key(one.call))
            for one in wanted
        ]
        before, prompt_count = self._done, sum(len(one.call.prompt) for one in wanted)
        doing = "reading the transcript"
        try:
            for done in self._conversation.answer(*attempts):
                yield Slice(min(before + done, self._total), self._total, note + doing)
                doing = "reading the transcript" if done < prompt_count else "writing"
        except GeneratorExit:
            for attempt in attempts:
                self._kept.put_begun(attempt.call, attempt.answer)
            raise
        for attempt in attempts:
            self._kept.put(attempt.call, attempt.answer)
        return [attempt.answer for attempt in attempts]

    def _value(self, one: "_Wanted", answer: Answer) -> Value | None:
        is_cut_list = self._asked.template.per_turn and answer.finish == "length"
        value = answer.value(self._asked.template.schema if is_cut_list else one.call.schema)
        if value is not None and one.what != "merge" and self._asked.template.per_turn:
            value = citing.numbered(value, one.turns)
        return value

    def _leave_out(self, number: int, count: int, tokens_max: int) -> None:
        self.outcome.notes.append(
            f"Nothing whole was written about piece {number} of {count} within {tokens_max} tokens."
        )


def _record(call: Call, answer: Answer, what: str, turns: Sequence[Turn], resumed: bool) -> Record:
    return Record(
        what=what,
        first_segment=turns[0].number if turns else None,
        last_segment=turns[-1].number if turns else None,
        prompt_tokens=len(call.prompt),
        completion_tokens=answer.token_count,
        finish=answer.finish,
        resumed=resumed,
    )


def _length(value: Value) -> int:
    """Items of an answer that is one list."""
    (items,) = value.values()
    return len(items)


def _too_long(call: Call, n_ctx: int) -> EngineFault:
    return EngineFault(
        "TRANSCRIPT_TOO_LONG",
        f"the prompt has {len(call.prompt)} tokens and the answer may take {call.tokens_max}; "
        f"the context holds {n_ctx}",
        tokens=len(call.prompt),
        tokens_max=call.tokens_max,
        n_ctx=n_ctx,
    )


def _nothing_whole(tokens_max: int, count: int) -> EngineFault:
    return EngineFault(
        "OUTPUT_TRUNCATED",
        f"{tokens_max} tokens are too few for this template: nothing whole was written; "
        "raise tokens_max",
        tokens_max=tokens_max,
        answer_count=count,
    )
