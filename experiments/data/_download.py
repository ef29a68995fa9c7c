"""Download one file over HTTP so that a broken connection costs only what was not yet received."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from experiments.data._store import Address, sha256

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30
# Attempts in a row that may bring nothing, and the pause after each.
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0

Report = Callable[[int, int | None], None]


def download(address: Address, path: Path, report: Report) -> None:
  """Download a file to `path`, going on from `path.part` where an earlier call was cut off.

  Args:
    address: what to download.
    path: appears only when complete and verified.
    report: called with the bytes that are there and the bytes in all, if known.

  Raises:
    ValueError: if the file has another sha256 than `address`; its bytes are thrown away.
    ConnectionError: if the server refuses, or can't be reached or breaks off again and again; the
      bytes that came are kept for the next call.
  """
  part = path.with_name(f"{path.name}.part")
  complete, failures = False, 0
  while not complete:
    before, reason = _size(part), "the connection was cut"
    try:
      complete = _receive(address.url, part, report)
    except urllib.error.HTTPError as error:
      raise ConnectionError(f"{address.url} answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
      reason = str(e)
    if not complete and _size(part) <= before:
      failures += 1
      if failures == _ATTEMPTS:
        raise ConnectionError(f"{address.url} fails: {reason}")
      time.sleep(_PAUSE_SECONDS)
  if (actual := sha256(part)) != address.sha256:
    part.unlink()
    raise ValueError(f"{address.url} has sha256 {actual}, expected {address.sha256}")
  part.replace(path)


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, report: Report) -> bool:
  """Append what is missing to `part`; return whether all is there."""
  here = _size(part)
  headers = {"Range": f"bytes={here}-"} if here else {}
  try:
    response = urllib.request.urlopen(
      urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
    )
  except urllib.error.HTTPError as error:
    if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    # Nothing lies beyond what is here: complete, unless the server's file is another one.
    complete = error.headers.get("Content-Range") == f"bytes */{here}"
    if not complete:
      part.unlink()
    return complete
  with response:
    if response.status != http.client.PARTIAL_CONTENT:
      here = 0  # A server without ranges sends everything again.
    length = response.headers.get("Content-Length")
    total = here + int(length) if length else None
    with part.open("ab" if here else "wb") as file:
      while chunk := response.read(_CHUNK):
        file.write(chunk)
        here += len(chunk)
        report(here, total)
  return total is None or here == total
