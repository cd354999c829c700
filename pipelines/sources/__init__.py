"""Every kind of source by the name configs use. Each value is called with the source's options as keywords."""

from collections.abc import Callable

from pipelines.records import Source
from pipelines.sources import coco_json, shapes

SOURCES: dict[str, Callable[..., Source]] = {
  "coco_json": coco_json.CocoJson,
  "shapes": shapes.Shapes,
}


def open_source(kind: str, **options) -> Source:
  """Builds a source. Raises ValueError naming the known kinds, TypeError for an unknown option."""
  if kind not in SOURCES:
    raise ValueError(f"source {kind!r} is not known; known: {', '.join(SOURCES)}")
  return SOURCES[kind](**options)
