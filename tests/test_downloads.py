"""CelebA's downloads, one after the other: each gets what its library would give it, made here."""

import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import painting
import pytest
from conftest import refused
from painting import ATTRIBUTES, ATTRIBUTES_OF, all_numbers, labels_follow, numbers, sizes

from base.errors import DatasetUnavailable
from image_data import downloads
from image_data.load import load_dataset


def load_celeba(**options):
    return load_dataset("celeba", image_size=8, **options)


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    """torchvision's download fails as it does when the quota is used up."""
    quota = RuntimeError("Too many users have viewed or downloaded this file recently")
    monkeypatch.setattr(downloads, "from_torchvision", Mock(side_effect=quota))


@pytest.fixture
def kagglehub(tmp_path, monkeypatch):
    """Its cache holds the unpacked archive: a folder of images in a folder, and .csv tables."""

    def dataset_download(handle):
        folder = tmp_path / "kagglehub" / "datasets" / handle
        if not folder.exists():
            painting.kaggle(painting.write_celeba(folder))
        return str(folder)

    download = Mock(side_effect=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=download))
    return download


def test_kaggles_copy_comes_when_the_quota_is_used_up_and_only_once(kagglehub):
    for _ in range(2):
        data = load_celeba()
        assert all_numbers(data) == list(range(20)) and data.label_names == ATTRIBUTES
        assert labels_follow(data, ATTRIBUTES_OF.__getitem__)
        assert sorted(numbers(data.test)) == [17, 18, 19]
    assert kagglehub.call_args_list == [((downloads.KAGGLE_DATASET,),)]


@pytest.mark.parametrize("cache", ["kagglehub", "another"])
def test_kaggles_copy_is_found_in_its_cache_or_where_colab_has_it(
    kagglehub, tmp_path, monkeypatch, cache
):
    """In kagglehub's own cache even where nothing may be downloaded."""
    kagglehub(downloads.KAGGLE_DATASET)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / cache))
    assert all_numbers(load_celeba(download=cache == "another")) == list(range(20))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Shards of four rows each, which are written when they are asked for."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(downloads, "TRAIN_SHARD", 4)
    monkeypatch.setattr(downloads, "HUB_SHARDS", {"train": 3, "valid": 2, "test": 2})
    asked = []

    def hf_hub_download(repo_id, filename, *, repo_type, revision):
        assert (repo_id, repo_type, len(revision)) == ("flwrlabs/celeba", "dataset", 40)
        split, number = filename.removeprefix("img_align+identity+attr/").split("-")[:2]
        asked.append((split, int(number)))
        first = {"train": 0, "valid": 12, "test": 20}[split] + 4 * int(number)
        rows = []
        for i in range(first, first + 4):
            image = painting.paint(tmp_path / "painted.png", i, (178, 218)).read_bytes()
            row = {"image": {"bytes": image, "path": f"{i}.jpg"}, "celeb_id": 7}
            rows.append(row | dict(zip(ATTRIBUTES, ATTRIBUTES_OF[i])))
        path = tmp_path / f"{split}{number}.parquet"
        parquet.write_table(arrow.Table.from_pylist(rows), path)
        return str(path)

    stand_in = SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return asked


def test_parquet_shards_are_the_third_source(hub, capsys):
    data = load_celeba()
    assert sizes(data) == [12, 8, 8] and data.label_names == ATTRIBUTES
    assert all_numbers(data) == list(range(28))
    assert labels_follow(data, ATTRIBUTES_OF.__getitem__)
    assert sorted(numbers(data.val)) == list(range(12, 20))
    assert "12 GB" in capsys.readouterr().out


def test_only_as_many_shards_are_fetched_as_max_images_asks_for_and_only_once(hub):
    for _ in range(2):
        data = load_celeba(max_images=6)
        assert sizes(data) == [6, 4, 4] and set(numbers(data.train)) <= set(range(8))
        assert hub == [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    assert sizes(load_celeba(max_images=100)) == [12, 4, 4]


def test_all_that_was_tried_is_named_with_what_could_be_installed(tmp_path):
    with pytest.raises(DatasetUnavailable) as caught:
        load_celeba()
    said = str(caught.value)
    assert f"{tmp_path / 'data'}: there is no such folder" in said
    assert "download: Too many users" in said
    assert "Kaggle's copy: needs kagglehub: pip install kagglehub" in said
    assert "parquet files: needs huggingface_hub: pip install huggingface_hub" in said


def test_a_damaged_download_leads_to_the_next_source(kagglehub, hub):
    shutil.rmtree(f"{kagglehub(downloads.KAGGLE_DATASET)}/img_align_celeba")
    assert sizes(load_celeba()) == [12, 8, 8]


@pytest.mark.parametrize("name", ["celeba", "cifar10"])
def test_a_file_as_data_root_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / "data").write_text("")
    with refused(DatasetUnavailable, "is a file: set VAE_DATA"):
        load_dataset(name)


def test_a_half_unpacked_folder_is_named_with_its_numbers(tmp_path, capsys):
    folder = painting.write_celeba(tmp_path / "data" / "celeba")
    painting.half_unpacked(folder)
    painting.official(folder).unlink()
    (folder / "list_eval_partition.txt").unlink()
    assert load_celeba().title == "CelebA (7 images)"
    assert "has 7 of the 20 images of its table" in capsys.readouterr().out
