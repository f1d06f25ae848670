"""The generated reference pages say what the code declares."""

from alpa_mlir.docs_generator import DOCS, pages, stale_pages


def test_generated_pages_are_fresh():
    assert stale_pages(DOCS) == [], "run `make docs`"


def test_a_changed_page_is_stale(tmp_path):
    for path, text in pages(tmp_path).items():
        path.write_text(text)
    assert stale_pages(tmp_path) == []
    page = tmp_path / "passes.md"
    page.write_text(page.read_text().replace("alpa-normalize", "alpa-normalise"))
    assert stale_pages(tmp_path) == [page]
