"""Texts of a known length in time, to count with a model's own tokenizer.

TALK is half a minute of a meeting at 150 words a minute, as a transcript shows it to the model;
EMAIL is one letter of the length that people write at work.
"""

TALK_SECONDS = 30

TALK = """\
[118] SPEAKER_00: Right, then let us come back to the delivery dates, because that is the one
point where I still see a risk for the whole plan.
[119] SPEAKER_01: Yes. I called the supplier on Tuesday, and they say the second batch will be
two weeks late, so we get it on the fourteenth and not before.
[120] SPEAKER_02: That is still early enough for us if the tests begin on the sixteenth. I will
move the room and tell the others today.
"""

EMAIL = """\
From: Maria Lindqvist
Subject: Invoice 20318 and the open question about the service contract

Dear Mr Becker,

thank you for the quick answer of last week. I have passed your remarks on to our accounting, and
they agree that the position for the second visit was entered twice. You will get a corrected
invoice in the next days; please keep the first one back until then.

There is one more thing. Our service contract ends on 31 March, and according to section four it
has to be renewed in writing two months before. We would like to go on under the same terms, but
with a reaction time of four hours instead of eight, because the new line runs at night as well.
Could you send me an offer for that by the end of next week? If you would rather talk about it
first, I am in the office on Thursday afternoon and all day on Friday.

With kind regards
Maria Lindqvist
Head of Operations
"""
