"""The log file, its repair after a kill, the finite check, progress and the counting of skipped records."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.train import metrics, progress, skips


class Screen(io.StringIO):
  def __init__(self, terminal):
    super().__init__()
    self._terminal = terminal

  def isatty(self):
    return self._terminal


def values(loss, **more):
  return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1), "lr": jnp.float32(0.1), **more}


def recorder(folder, start=0, log_every=2, screen=None):
  files = metrics.MetricFiles(folder, start)
  shown = progress.Progress(10, start, stream=screen or Screen(False))
  return metrics.Recorder(files, shown, log_every, seconds=0.0), files


def read(folder):
  return [json.loads(line) for line in (folder / metrics.JSON_LINES).read_text().splitlines()]


def test_lines_come_one_step_late_and_only_when_due(tmp_path):
  recording, files = recorder(tmp_path)
  for step in range(1, 5):
    rows, padding = {"a": 6, "b": step}, step / 10
    recording.step(step, values(step), 8, 0.25, {"canvas": [4, 6]}, rows, padding)
  assert [line["step"] for line in read(tmp_path)] == [1, 2]  # step 4 runs
  recording.flush()
  files.close()
  lines = read(tmp_path)
  assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (4, 4.0)]
  assert lines[2]["data_seconds"] == 0.5 and lines[2]["canvas"] == [4, 6]
  assert lines[2]["rows"] == {"a": 12, "b": 7} and lines[2]["padding"] == 0.35  # of steps 3 and 4
  assert lines[2]["images_per_second"] > 0 and lines[2]["seconds"] >= lines[0]["seconds"]


def test_a_restart_cuts_the_log_back(tmp_path):
  recording, files = recorder(tmp_path, log_every=1)
  for step in range(1, 6):
    recording.step(step, values(step), 8, 0.0, {}, {"a": 8}, 0.25)
    if step == 3:
      recording.flush()
      recording.evaluation(3, {"AP": 0.5})
  recording.flush()
  files.close()
  with (tmp_path / metrics.JSON_LINES).open("a") as file:
    file.write('{"step": 6, "lo')  # killed while writing
  recording, files = recorder(tmp_path, start=3, log_every=1)
  assert files.evaluated == {3}
  recording.step(4, values(40), 8, 0.0, {}, {"a": 8}, 0.25)
  recording.flush()
  files.close()
  assert [(line["step"], line.get("loss"), line.get("eval")) for line in read(tmp_path)] == [
    (1, 1.0, None), (2, 2.0, None), (3, 3.0, None), (3, None, {"AP": 0.5}), (4, 40.0, None),
  ]  # fmt: skip


def test_tensorboard_events_are_written(tmp_path):
  recording, files = recorder(tmp_path, log_every=1)
  recording.step(1, values(2.5), 8, 0.0, {"skipped": {"nan_box": 3}}, {"a": 8}, 0.25)
  recording.flush()
  recording.evaluation(1, {"AP": 0.5})
  files.close()
  (events,) = (tmp_path / metrics.TENSORBOARD).iterdir()
  content = events.read_bytes()
  for tag in (b"train/loss", b"train/lr", b"skipped/nan_box", b"eval/AP"):
    assert tag in content
  assert np.float32(2.5).tobytes() in content


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["box", "grad_norm"])
def test_what_is_not_finite_is_named_with_its_step(tmp_path, name, value):
  recording, _ = recorder(tmp_path)
  recording.step(5, values(1.0) | {name: jnp.float32(value)}, 8, 0.0, {}, {"a": 8}, 0.25)
  with pytest.raises(metrics.TrainingDiverged, match=f"step 5: {name} not finite"):
    recording.step(6, values(1.0), 8, 0.0, {}, {"a": 8}, 0.25)
  assert issubclass(metrics.TrainingDiverged, FloatingPointError)


def test_plain_lines_have_an_eta():
  screen = Screen(False)
  shown = progress.Progress(110, 0, stream=screen)
  shown.line(10, values(2.0) | {"images_per_second": 4.0, "data_seconds": 0.1}, step_seconds=36.6)
  assert "step 10/110" in screen.getvalue() and "ETA 1:01:00" in screen.getvalue()


def test_eta_beyond_a_day():
  screen = Screen(False)
  progress.Progress(1_000_000, 0, stream=screen).line(
    0, values(2.0) | {"images_per_second": 4.0, "data_seconds": 0.1}, step_seconds=1.0
  )
  assert "ETA 11 days, 13:46:40" in screen.getvalue()


def test_a_terminal_gets_a_bar_and_other_processes_nothing():
  screen = Screen(True)
  shown = progress.Progress(10, 4, stream=screen)
  shown.step(5, 1.25)
  shown.note("hello")
  shown.close()
  assert "5/10" in screen.getvalue() and "hello" in screen.getvalue()
  quiet = Screen(True)
  shown = progress.Progress(10, 4, stream=quiet, quiet=True)
  shown.step(5, 1.25)
  shown.note("hello")
  shown.close()
  assert quiet.getvalue() == ""


def test_skips_are_counted_by_reason_and_the_first_are_named():
  notes = []
  counter = skips.Skips(0.5, {"nan_box": 2}, {"too_many_boxes": 1}, notes.append)
  for i in range(12):
    counter.add([("nan_box" if i % 2 else "undecodable_image", f"shapes/{i}")], [("too_many_boxes", "s/1")] * 3, 4)
  assert counter.numbers() == {"skipped": {"nan_box": 8, "undecodable_image": 6}, "reduced": {"too_many_boxes": 37}}
  for start in ("skipped record shapes/0: undecodable", "skipped record shapes/1: nan_box", "reduced record s/1: too"):
    assert any(note.startswith(start) for note in notes)
  assert len(notes) == 3 * skips.SHOWN  # the first of every reason


def test_records_that_lost_boxes_never_stop_the_run():
  counter = skips.Skips(0.0, {}, {}, lambda note: None)
  for _ in range(100):
    counter.add([], [("caption_truncated", "goldg/7")] * 8, examples=8)
  assert counter.numbers() == {"skipped": {}, "reduced": {"caption_truncated": 800}}


def test_too_many_skips_stop_the_run():
  counter = skips.Skips(0.1, {}, {}, lambda note: None)
  bad = [("empty_caption", "goldg/7")]
  with pytest.raises(skips.TooManySkipped, match=r"empty_caption 2\d.*skip_limit = 0.1"):
    for _ in range(1000):
      counter.add(bad, [], examples=8)
  accepted = skips.Skips(0.2, {}, {}, lambda note: None)
  for _ in range(1000):
    accepted.add(bad, [], examples=8)
  assert accepted.skipped["empty_caption"] == 1000
