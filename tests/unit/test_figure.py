"""Heat maps as PNG and PDF: real files, the right cells, any text, and an answer where matplotlib is missing."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from s2s.analysis.figure import figure
from s2s.analysis.heatmap import HeatMap
from s2s.errors import UsageError

pytest.importorskip("matplotlib", reason="the extra s2s[pictures] is not installed")

GIVEN = HeatMap(np.array([[0.5, 0.0], [0.0, 1.0]]), ["a", "b"], ["x", "y"], "title")


def darkness(data: bytes) -> np.ndarray:
    """How dark each pixel is, 0 to 1."""
    from PIL import Image

    return 1 - np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float) / 255


def test_the_files_are_what_they_are_called_and_the_same_every_time() -> None:
    png, pdf = figure([GIVEN], "png"), figure([GIVEN], "pdf")
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and pdf.startswith(b"%PDF-")
    assert figure([GIVEN], "png") == png and figure([GIVEN], "pdf") == pdf


def test_the_largest_weight_is_the_darkest_area_and_mirrored_from_the_right() -> None:
    """The darkest cell is right below for the words from the left, and left below for those from the right."""
    for words, right in ((["a", "b"], True), (["א", "ב"], False)):
        dark = darkness(figure([GIVEN._replace(source=words, title="", weights=np.array([[0, 0.0], [0, 1]]))], "png"))
        inner = dark[:, : dark.shape[1] * 3 // 4] > 0.75  # without the bar of colours
        rows, columns = np.nonzero(inner)
        area = [(row, column) for row, column in zip(rows, columns, strict=True) if inner[row : row + 8, column].all()]
        heart = np.median([column for _, column in area])
        edges = np.nonzero((dark > 0.75).mean(0) > 0.2)[0]
        middle = (edges.min() + edges[edges < inner.shape[1]].max()) / 2
        assert bool(heart > middle) is right


@pytest.mark.parametrize("text", ["$x_1^{$", "\\frac{", "<script>", "a\u202eb\x1b", "%s{}", ""])
def test_any_text_is_text(text: str) -> None:
    assert figure([HeatMap(np.ones((1, 1)), [text], [text], text, text)], "pdf").startswith(b"%PDF-")


def marks(words: list[str], rows: int, **more: object) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that marks add to a heat map of four equal columns."""
    plain = HeatMap(np.full((rows, 4), 0.25), words, ["x", "y"][:rows], "")
    found = [darkness(figure([one], "png")) for one in (plain, plain._replace(**more))]
    return np.nonzero(abs(found[1] - found[0]) > 0.02)


@pytest.mark.parametrize("words", [list("abcd"), list("אבגד")])
def test_marks_stand_where_they_belong(words: list[str]) -> None:
    """A window over all four words measures the page; one from the first edge to the third lies within it."""
    _, whole = marks(words, 1, windows=[(0, 4)])
    left, wide = whole.min(), whole.max() - whole.min()

    def place(edge: float) -> float:
        """Of an edge between words, counted from where reading begins."""
        return float(left + wide * (edge if words[0] == "a" else 4 - edge) / 4)

    _, part = marks(words, 1, windows=[(1, 3)])
    assert sorted([part.min(), part.max()]) == pytest.approx(sorted([place(1), place(3)]), abs=4)
    down, across = marks(words, 2, centres=[0.5, 2.5])
    half = (down.min() + down.max()) / 2
    assert across[down < half].mean() == pytest.approx(place(0.5), abs=4)
    assert across[down > half].mean() == pytest.approx(place(2.5), abs=4)


def test_many_pictures() -> None:
    one, four = (darkness(figure([GIVEN] * count, "png")).shape for count in (1, 4))
    assert (four[0], four[1]) == pytest.approx((2 * one[0], 3 * one[1]), abs=2)


def test_what_no_font_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    figure([GIVEN._replace(title="\U000e0fff\ufdd0")], "png")
    assert "none of the installed fonts" in capsys.readouterr().err


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"PDF needs matplotlib.*pip install -e '.\[pictures\]'"):
        figure([GIVEN], "pdf")


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no heat map"):
        figure([], "png")
    with pytest.raises(ValueError, match="finite"):
        figure([GIVEN._replace(weights=np.full((2, 2), np.nan))], "png")
