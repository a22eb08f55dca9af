"""Every constant of time in the backend, with its reason. `SILENCE` and `WITHIN_STEPS` end a training of several processes; of the others
none ends work: a slow card, disk or network only makes them come round more often. (Those of the nodes are in `nodes/jobs/durations.py`.)
Seconds, where nothing else is said."""

BEAT = 1.0
"""Between two "stopping" events: a person who waits sees that the number of bytes rises."""

BETWEEN_BARS = 0.2
"""Between two events of one bar: the nodes look five times a second, and a merge of thousands of tensors would fill the log."""

BETWEEN_PLACES = 2.0
"""Between two words about how much of a file has been read, and before the first: most files are read in less."""

BETWEEN_MEMORY = 5.0
"""Between two events about memory: a curve of hours needs no more, and asking the system takes longer than a step of a tiny model may."""

LOOK_WHILE_PAUSED = 0.2
"""Between two looks of a paused training for the request that lets it continue."""

LOOK_WHILE_SERVING = 0.1
"""Between two looks of a server for the request to stop."""

BETWEEN_LOOKS = 0.25
"""Between two looks at what processes take: a peak of a step lasts about so long, and a look costs a millisecond."""

BETWEEN_RELOADS = 5.0
"""Between two looks of TensorBoard for what is new in its logs, which are written every few seconds."""

WITHIN_GROUP = 7 * 24 * 3600.0
"""How long processes wait for the main one: it may save to a slow disk or make samples for hours. When a process is gone, the others are
reported at once all the same."""

SILENCE = 300.0
"""Without any sign of life of a process of the group: it is stopped, or its machine or the network is gone. A machine that swaps may be
still for a minute or two. Everything learned is saved then, so that ending is not dear."""

WITHIN_STEPS = 30 * 60.0
"""Without `--ddp_timeout`, for a process that is alive to come to the end of its micro-step: of the slowest card, with a slow disk."""

BETWEEN_CALLS = 2.0
"""Between two looks for such signs, by a process that waits for others."""

SIGNS = 3
"""So many beats without one, after an exchange failed, tell who is gone."""

STORE = 20.0
"""For an answer of the store in which processes of a group note that they are there."""

LOCK_WITHOUT_CONTENTS = 10.0
"""Between making a lock file and writing who holds it: younger, it is taken for one that is just being made."""

BETWEEN_RECORDS = 5.0
"""Between two writes of what was cached: after a crash at most what was cached since is cached again."""

RECORD_LOCK = 60.0
"""For another caching run to write its record, milliseconds of work, before this one says that it is stuck."""

FILE_IN_USE = (0.01, 0.05, 0.2, 0.5)
"""Between tries to replace a file that another program has open, on Windows: those of ours read one in milliseconds, a virus scanner in
less than a second."""

LEFT_ALONE = 24 * 3600.0
"""Since a temporary file was last written to: older, its program is no more. No write pauses for a day."""
