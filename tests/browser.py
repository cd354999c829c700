"""A real browser without a screen, spoken to over its DevTools pipe: no driver and no package needed."""

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# The pipe's ends must be descriptors 3 and 4 of the browser.
START = "import os, sys; _, i, o, *run = sys.argv; os.dup2(int(i), 3); os.dup2(int(o), 4); os.execvp(run[0], run)"


def installed() -> str | None:
  """The command of a Chromium or Chrome, None where there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One tab. `events` holds all that it told, [(method, parameters)]."""

  def __init__(self, command: str, profile, timeout: float = 60):
    theirs_in, self._out = _pipe()
    self._in, theirs_out = _pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    arguments = [command, *flags, f"--user-data-dir={profile}", "--no-first-run", "about:blank"]
    launcher = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), *arguments]
    keep = dict(pass_fds=(theirs_in, theirs_out), start_new_session=True)
    self._process = subprocess.Popen(launcher, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **keep)
    os.close(theirs_in)
    os.close(theirs_out)
    self._ids, self._buffer, self._timeout = itertools.count(1), b"", timeout
    self.events: list[tuple[str, dict]] = []
    self._session = None
    tab = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
    self._session = self("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self(f"{domain}.enable")

  def __call__(self, method: str, **parameters):
    """The result of a DevTools command. Raises RuntimeError with the browser's message, TimeoutError."""
    number = next(self._ids)
    message = {"id": number, "method": method, "params": parameters}
    if self._session is not None:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    for answer in self._messages():
      if answer.get("id") == number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]
      self._keep(answer)

  def open(self, url: str) -> None:
    """Goes to a page and waits until all of it is loaded."""
    self.events.clear()
    self("Page.navigate", url=url)
    if not any(method == "Page.loadEventFired" for method, _ in self.events):
      for message in self._messages():
        self._keep(message)
        if message.get("method") == "Page.loadEventFired":
          return

  def run(self, script: str):
    """The value of a JavaScript expression, of a promise what it resolves to."""
    found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in found:
      raise RuntimeError(f"{script}: {found['exceptionDetails']}")
    return found["result"].get("value")

  def _messages(self):
    end = time.monotonic() + self._timeout
    while True:
      while b"\0" not in self._buffer:
        ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
        data = os.read(self._in, 1 << 20) if ready else b""
        if not data:
          raise TimeoutError(f"the browser said nothing more within {self._timeout} s")
        self._buffer += data
      text, _, self._buffer = self._buffer.partition(b"\0")
      yield json.loads(text)

  def _keep(self, message) -> None:
    if "method" in message:
      self.events.append((message["method"], message["params"]))

  def close(self) -> None:
    self._session = None
    with contextlib.suppress(RuntimeError, TimeoutError, OSError):
      self("Browser.close")
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(10)
    self._process.kill()
    self._process.wait()
    os.close(self._in)
    os.close(self._out)


def _pipe() -> tuple[int, int]:
  """Both ends of a pipe, with numbers that cannot collide with 3 and 4."""
  ends = os.pipe()
  high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
  for end in ends:
    os.close(end)
  return high
