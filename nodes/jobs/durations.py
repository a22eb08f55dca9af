"""Every constant of time in the nodes and in headless runs, with its reason. Seconds. Only `PATIENCE`, `GRACE` and `TERMINATE` end
something, and only of a job that somebody stops. (Those of the backend are in its `durations.py`; `guarded.py`, `meeting.py` and
`installer/`, which import nothing of ours, name theirs where they use them.)"""

READ = 0.1
"""Between two looks into what a job has written."""

SHOW = 0.2
"""Between two looks of a node at its job, and at its user's interrupt: five times a second looks alive and costs nothing."""

HEARTBEAT = 5.0
"""At most between two writes of `status.json`, so that a reader can tell a running job from one whose runner is gone."""

NOTED = 60.0
"""From the last note of a job whose process is gone to what its runner, which is there, notes of its end: it reads the rest of a long log
before. One that cannot write (a full disk) is not waited for any longer."""

GRACE = 2.0
"""For a job that is asked to stop and would lose nothing (any more), to end by itself: its models are freed in order, and between two files
that it saves it loses nothing for a moment. Then it is terminated."""

TERMINATE = 0.8
"""Between terminating and killing, which both end a job that has nothing to lose or whose user did not want to wait."""

PATIENCE = 600.0
"""For a job that would lose something, without any sign of getting on (an event, a line of its log, a byte of its file). A step of
minutes or a save to a slow disk gives signs all the time."""

FILE_IN_USE = 0.5
"""Between two tries to rename a file that another program has open, as virus scanners do for a moment."""

QUIET_LINES = 5.0
"""Between two lines of one node where the terminal is a file: a log of hours stays readable."""

MESSAGE = 0.5
"""Between two messages to the page: more often nobody reads a number."""

MESSAGES_PER_ROUND = 10
"""Every N of them it is seen to that a queue has its keeper: a job must not wait because one was killed."""

AFTER_A_PROBLEM = 30.0
"""Between two tries to look at jobs on a disk that gives errors, each of which is written to the log."""

KEEP = 1.0
"""Between two looks of the keeper at the queue: what a job takes to start is longer."""

BETWEEN_JOBS = 3.0
"""From the end of a job in the background to the next on its GPU: a generation that waits for it looks several times meanwhile."""
