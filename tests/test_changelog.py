"""CHANGELOG.md names the formats that the code writes, so that a new one is not left out."""

import re

from tests.clone import PROJECT


def test_it_names_every_format_there_is():
    sources = [path for folder in ("storage", "evaluation", "reporting", "export") for path in (PROJECT / folder).glob("*.py")]
    written = {found for path in sources for found in re.findall(r'^\w*FORMAT = "([\w-]+)"', path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"`(dae-[a-z]+-\d+)`", (PROJECT / "CHANGELOG.md").read_text().partition("Formats:")[2]))
    assert written and written == named
