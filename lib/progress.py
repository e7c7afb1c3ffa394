"""How far long work is: a bar on a terminal, a line now and then without one."""

import sys
import time

from tqdm import tqdm

# for tqdm in loops of seconds or minutes: a bar on terminals only
progress = {"disable": None, "leave": False, "mininterval": 0.5, "ncols": 80}

# A training's bar comes last: of what does not fit into 80 columns it alone is lost
TRAINING_BAR = "{desc}: {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}{postfix} |{bar}|"

SECONDS_BETWEEN_LINES = 60


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class TrainingProgress:
    """Shows the progress of a training of `total` steps, of which `done` are done; `title`: "run 2 of 8" or so.

    Without a terminal it prints lines, which a cluster's log keeps: at evaluations and in long gaps between them.
    """

    def __init__(self, title: str, total: int, done: int, show: bool):
        self.title, self.total, self.done = title, total, done
        self.began_at = done
        self.began = self.last_line = time.monotonic()
        self.loss = self.accuracy = None
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.prints_lines = show and not on_terminal
        self.bar = None  # none is made where none is shown: tqdm shares a lock among processes
        if show and on_terminal:
            self.bar = tqdm(
                total=total, initial=done, desc=title, unit="step", ncols=79, mininterval=1, bar_format=TRAINING_BAR
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def step(self) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        if self.prints_lines and time.monotonic() - self.last_line > 5 * SECONDS_BETWEEN_LINES:
            self.print_line()

    def evaluated(self, loss: float, accuracy: float) -> None:
        self.loss, self.accuracy = loss, accuracy
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f} acc {accuracy:.3f}")
        if self.prints_lines and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.print_line()

    def print_line(self) -> None:
        self.last_line = time.monotonic()
        words = [f"{self.title}: step {self.done:,} of {self.total:,}"]
        if self.loss is not None:
            words.append(f"loss {self.loss:.3f}, accuracy {self.accuracy:.3f}")
        rate = (self.done - self.began_at) / (self.last_line - self.began)
        if rate > 0:
            words.append(f"{rate:.3g} steps/s, {duration((self.total - self.done) / rate)} left")
        print(", ".join(words), flush=True)
