"""Data sets prepared by TFDS (without TensorFlow) and by Hugging Face's `datasets`."""

import io
import subprocess
import sys

import numpy as np
import pytest

from pipelines.records import BadRecord
from pipelines.sources.hf_datasets import HfDatasets
from pipelines.sources.tfds_data import TfdsData
from tests.pipelines.dialects import check_example, copied, grey, picture, same

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`")
datasets = pytest.importorskip("datasets", reason="needs the extra `data`")

TEXTS = (" two\n dogs ", "")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A data set like TFDS's coco, with captions."""

  folder = tmp_path_factory.mktemp("tfds")

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path, code_path = folder, None  # TFDS would look for the package that this class is in

    def _info(self):
      thing = {
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "is_crowd": np.bool_,
      }
      features = {
        "image": tfds.features.Image(encoding_format="png"),
        "objects": tfds.features.Sequence(thing),
        "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        "title": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {"train": self._generate_examples(), "other": self._generate_examples()}

    def _generate_examples(self):
      box = tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=1.0)
      for i, text in enumerate(TEXTS):
        things = [{"bbox": box, "label": "dog", "is_crowd": crowd} for crowd in (False, True)]
        yield (
          i,
          {
            "image": io.BytesIO(picture(40 + i)),
            "objects": things[: 2 * (1 - i)],
            "captions": [{"text": text}, {"text": "other"}],
            "title": f"title {i}",
          },
        )

  builder = Tiny(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return str(folder / "tiny" / "1.0.0")


def test_tfds_detection(prepared):
  """Fractions in the order y x become pixels, crowds are left out, an empty picture has no boxes."""
  source = TfdsData(prepared)
  assert (source.kind, source.classes, len(source)) == ("detection", ("cat", "dog"), 2)
  by_grey = {grey(source[i]): source[i] for i in range(2)}
  np.testing.assert_allclose(by_grey[40].boxes_xyxy_px, [[6, 2, 29, 9]], atol=1e-5)  # of 20 x 30
  assert by_grey[40].labels == ("dog",) and by_grey[41].labels == () and by_grey[41].boxes_xyxy_px.shape == (0, 4)
  assert all(same(source[i], copied(source)[i]) for i in range(2))
  assert len(TfdsData(prepared, split="other[:50%]")) == 1


def test_tfds_captions(prepared):
  nested, flat = TfdsData(prepared, caption="captions/text"), TfdsData(prepared, caption="title")
  assert nested.kind == "caption" and nested.classes == ()
  texts = {grey(flat[i]): (flat.caption(i), i) for i in range(2)}
  assert texts[40][0] == "title 0" and nested[texts[40][1]].caption == "two dogs"
  with pytest.raises(BadRecord, match="empty_caption"):
    nested[texts[41][1]]


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(split="test"), "Unknown split 'test'.*ArrayRecord"),
    (dict(objects="things"), "no feature 'things' with `bbox`"),
    (dict(caption="captions/words"), "no feature 'captions/words'"),
    (dict(image="photo"), "no feature 'photo'; set `image`"),
  ],
)
def test_tfds_options_that_do_not_fit(prepared, options, message):
  with pytest.raises(ValueError, match=message):
    TfdsData(prepared, **options)


def test_tfds_folder_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"has no dataset_info\.json; set `data`"):
    TfdsData(str(tmp_path))


def test_tfds_is_read_without_tensorflow(prepared):
  program = f"""
import sys
from pipelines.sources import open_source
assert not any(m.split('.')[0] in ('tensorflow_datasets', 'datasets') for m in sys.modules), 'imported too early'
source = open_source('tfds_data', data={prepared!r})
assert len(source[0].image) > 50
assert not any(m.split('.')[0] == 'tensorflow' for m in sys.modules)
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


FEATURES = {
  "columns": {
    "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
    "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
  },
  "list": datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": datasets.Value("string")}),
}


def table(form, rows=3):
  """Pictures with one dog each (none in the first) and captions."""
  dogs = {
    "columns": [{"bbox": [[1, 2, 10, 4]], "category": [1]}],
    "list": [[{"bbox": [1, 2, 10, 4], "category": "dog"}]],
  }
  empty = {"columns": {"bbox": [], "category": []}, "list": []}
  content = [
    {
      "image": {"bytes": picture(i), "path": None},
      "objects": empty[form] if i == 0 else dogs[form][0],
      "text": f" row {i}\n" if i else "",
      "texts": [f"row {i}", "other"],
    }
    for i in range(rows)
  ]
  text = datasets.Value("string")
  features = {"image": datasets.Image(), "objects": FEATURES[form], "text": text, "texts": datasets.List(text)}
  return datasets.Dataset.from_list(content, features=datasets.Features(features))


@pytest.mark.parametrize("form", FEATURES)
def test_saved_detection_sets(tmp_path, form):
  table(form).save_to_disk(str(tmp_path / "saved"))
  names = dict(class_names=("cat", "dog")) if form == "list" else {}
  source = HfDatasets(str(tmp_path / "saved"), **names)
  assert (source.kind, source.classes, len(source)) == ("detection", ("cat", "dog"), 3)
  assert source[0].labels == () and source[2].labels == ("dog",) and grey(source[2]) == 2
  assert source[2].boxes_xyxy_px.tolist() == [[1, 2, 10, 5]]
  corners = HfDatasets(str(tmp_path / "saved"), **names, box_format="xyxy")
  assert corners[2].boxes_xyxy_px.tolist() == [[1, 2, 9, 3]]
  for i in range(3):
    check_example(source[i], source)
    assert same(source[i], copied(source)[i])
  with pytest.raises(ValueError, match="no named `category`" if form == "list" else "box_format 'yx' is not known"):
    HfDatasets(str(tmp_path / "saved"), **({} if form == "list" else dict(box_format="yx")))


def test_captions_in_parquet_files(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  for i in range(2):
    table("columns", 2).to_parquet(str(tmp_path / f"{i}.parquet"))
  source = HfDatasets(str(tmp_path / "*.parquet"), caption="texts")
  assert source.kind == "caption" and [source.caption(i) for i in range(4)] == ["row 0", "row 1"] * 2
  assert source[3].caption == "row 1" and grey(source[3]) == 1
  single = HfDatasets(str(tmp_path / "1.parquet"), caption="text")
  assert single.caption(1) == "row 1"
  with pytest.raises(BadRecord, match="hf_datasets/0: empty_caption"):
    single[0]
  with pytest.raises(ValueError, match=r"no column 'words'; its columns are \["):
    HfDatasets(str(tmp_path / "1.parquet"), caption="words")
  with pytest.raises(FileNotFoundError, match=r"none\.parquet does not exist; set `data`"):
    HfDatasets(str(tmp_path / "none.parquet"))
  (tmp_path / "broken.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-40])
  with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as a data set"):
    HfDatasets(str(tmp_path / "broken.parquet"))
