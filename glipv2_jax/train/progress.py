"""Progress for people: a bar on a terminal, plain lines anywhere else."""

import datetime
import sys
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm


class Progress:
  """Shows steps start..total on `stream`. Silent when `quiet` (processes other than the first)."""

  def __init__(self, total: int, start: int = 0, stream: TextIO | None = None, quiet: bool = False):
    self._total, self._quiet = total, quiet
    self._stream = sys.stderr if stream is None else stream
    self._bar = None
    if self._stream.isatty() and not quiet:
      self._bar = tqdm(total=total, initial=start, unit="step", file=self._stream, dynamic_ncols=True)

  def step(self, step: int, loss: float) -> None:
    """One more finished step."""
    if self._bar:
      self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
      self._bar.update(step - self._bar.n)

  def line(self, step: int, values: Mapping[str, float], step_seconds: float) -> None:
    """What was logged. `step_seconds`: recent time per step, for the ETA."""
    if self._bar:
      return  # the bar shows it
    eta = datetime.timedelta(seconds=round((self._total - step) * step_seconds))
    self.note(
      f"step {step}/{self._total}  loss {values['loss']:.4f}  lr {values['lr']:.3g}  "
      f"grad norm {values['grad_norm']:.3g}  {values['images_per_second']:.1f} images/s  "
      f"data wait {values['data_seconds']:.1f} s  ETA {eta}"
    )

  def note(self, text: str) -> None:
    """A line of its own."""
    if self._quiet:
      return
    if self._bar:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    if self._bar:
      self._bar.close()
