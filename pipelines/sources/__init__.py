"""Every kind of source by the name configs use. Each value is called with the source's options as keywords."""

from collections.abc import Callable

from pipelines.records import Source
from pipelines.sources import (
  array_record,
  caption_list,
  coco_captions,
  coco_json,
  flickr30k,
  glip_tsv,
  hf_datasets,
  mdetr_json,
  odvg_jsonl,
  openimages,
  phrasecut,
  refcoco,
  shapes,
  tfds_data,
  visual_genome,
  voc_xml,
  vqa_v2,
  webdataset_tars,
)

SOURCES: dict[str, Callable[..., Source]] = {
  "array_record": array_record.ArrayRecords,
  "caption_list": caption_list.CaptionList,
  "coco_captions": coco_captions.CocoCaptions,
  "coco_json": coco_json.CocoJson,
  "flickr30k": flickr30k.Flickr30k,
  "glip_tsv": glip_tsv.GlipTsv,
  "hf_datasets": hf_datasets.HfDatasets,
  "imagenet_boxes": voc_xml.ImageNetBoxes,
  "karpathy_captions": coco_captions.KarpathyCaptions,
  "mdetr_json": mdetr_json.MdetrJson,
  "odvg_jsonl": odvg_jsonl.OdvgJsonl,
  "openimages": openimages.OpenImages,
  "phrasecut": phrasecut.PhraseCut,
  "refcoco": refcoco.RefCoco,
  "shapes": shapes.Shapes,
  "tfds_data": tfds_data.TfdsData,
  "visual_genome": visual_genome.VisualGenome,
  "voc_xml": voc_xml.VocXml,
  "vqa_v2": vqa_v2.VqaV2,
  "webdataset_tars": webdataset_tars.WebdatasetTars,
}


def open_source(kind: str, **options) -> Source:
  """Builds a source. Raises ValueError naming the known kinds, TypeError for an unknown option."""
  if kind not in SOURCES:
    raise ValueError(f"source {kind!r} is not known; known: {', '.join(SOURCES)}")
  return SOURCES[kind](**options)
