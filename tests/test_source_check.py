"""What DVC could not take of a source is said before DVC is called."""

import errno
import os
from pathlib import Path

import pytest
import yaml

from errors import PipelineError
from params import check as check_file
from tests.test_params import changed


@pytest.fixture
def project(tmp_path) -> Path:
    """A project's folder, as far as the check looks at it."""
    (tmp_path / "project/artifacts/shards").mkdir(parents=True)
    (tmp_path / "project/images/deep").mkdir(parents=True)
    return tmp_path / "project"


def complaint_about_source(project: Path, source: str) -> str:
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(changed({"dataset.source": source})))
    with pytest.raises(PipelineError) as error:
        check_file(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: dataset.source: {source} ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such", "does not exist; name a folder of images"),
        (".", "holds the project itself"),
        ("..", "holds the project itself"),
        ("images/..", "holds the project itself"),
        ("link_home", "holds the project itself"),
        ("artifacts", "lies in artifacts/, which the pipeline writes"),
        ("artifacts/shards", "lies in artifacts/"),
        ("dangling", "is a link to nowhere, where nothing is"),
        ("pipe", "is neither a folder nor a file; name a folder of images"),
        ("a" * 300, "does not exist"),
        ("/dev/zero", "is neither a folder nor a file"),
    ],
)
def test_source_that_cannot_be_one(project, source, message):
    (project / "link_home").symlink_to("..")
    (project / "dangling").symlink_to("nowhere")
    os.mkfifo(project / "pipe")
    assert complaint_about_source(project, source).startswith(message)


def test_source_in_a_folder_that_may_not_be_read(project, monkeypatch):
    stat = os.stat

    def refuse(path, *arguments, **options):
        if path == project / "images":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert complaint_about_source(project, "images").startswith("is or leads into a folder that may not be read; mend its permissions")


def test_files_that_dvc_cannot_take_are_counted_and_named(project):
    (project / "images/deep/good.png").touch()
    (project / "images/link.png").symlink_to("deep/good.png")
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(changed({"dataset.source": "images"})))
    assert check_file(path).dataset.source == "images"
    os.mkfifo(project / "images/deep/pipe.png")
    (project / "images/null.png").symlink_to("/dev/null")
    message = complaint_about_source(project, "images")
    assert message.startswith("has 2 pipes, sockets or devices, which DVC cannot take: 'null.png', 'deep/pipe.png'; rename, mend or delete")
    for number in range(4):
        (project / f"images/deep/{number}.png").symlink_to("nowhere.png")
    message = complaint_about_source(project, "images")
    assert message.startswith("has 4 links that lead nowhere, which DVC cannot take: 'deep/0.png', 'deep/1.png', 'deep/2.png';")
    try:
        open(os.fsencode(project / "images/deep") + b"/caf\xe9.png", "w").close()
    except OSError:
        pytest.skip("this file system takes no such names")
    message = complaint_about_source(project, "images")
    assert message.startswith("has 1 names that are not UTF-8, which DVC cannot take: 'deep/caf\\udce9.png'")
