"""A contact sheet of true lesions in three planes, to check that their centers lie on dark spots."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text
from cmb_jax.io.volume import Volume
from cmb_jax.report import drawing
from cmb_jax.report.html import environment

FIELD_OF_VIEW_MM = 24.0
TILE_PX = 132
MAX_PER_CASE = 6
MAX_LESIONS = 240
SUFFIXES = (".png", ".html")
_COLUMNS = 3
_CAPTION_PX = 18
_GAP_PX = 10
_MARK = 255
_LEGEND = "the marks at the edges point at the stated center; number in its case, diameter, RAS mm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionTile:
    """One lesion: its planes side by side, and the caption below."""

    gray: np.ndarray  # (TILE_PX, 3 * TILE_PX) uint8: axial, coronal, sagittal, radiological display
    caption: str

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return drawing.data_uri(self.gray)


class LesionSheet:
    """Collects some lesions of every case and writes them as one PNG or HTML file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.seen = 0
        self.tiles: list[LesionTile] = []

    def add(self, name: str, volume: Volume, centers_mm: np.ndarray, diameters_mm: np.ndarray) -> None:
        """Draw up to `MAX_PER_CASE` lesions of a case, evenly spread over its list.

        Args:
            name: of the case.
            volume: its image.
            centers_mm: (n, 3) RAS mm.
            diameters_mm: (n,) mm.
        """
        count = len(centers_mm)
        self.seen += count
        room = min(count, MAX_PER_CASE, MAX_LESIONS - len(self.tiles))
        if room <= 0:
            return
        low, high = drawing.choose_windows(volume.data, None, volume.data > 0).swi
        inverse = np.linalg.inv(volume.affine)
        for row in np.unique(np.linspace(0, count - 1, room).round().astype(int)):
            center = inverse[:3, :3] @ centers_mm[row] + inverse[:3, 3]
            planes = [marked_plane(volume, plane, center, low, high) for plane in drawing.PLANES]
            x, y, z = centers_mm[row]
            caption = f"{name} {row + 1}/{count}: {diameters_mm[row]:.1f} mm at {x:.0f}, {y:.0f}, {z:.0f}"
            self.tiles.append(LesionTile(gray=np.concatenate(planes, axis=1), caption=caption))

    @property
    def legend(self) -> str:
        """The legend of the pictures, in one line."""
        return f"{self._shown}; {_LEGEND}"

    @property
    def _shown(self) -> str:
        planes = f"axial, coronal, sagittal, {FIELD_OF_VIEW_MM:g} mm wide, the patient's right on the left"
        return f"{len(self.tiles)} of {self.seen} lesions; {planes}"

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the sheet as PNG or HTML, depending on the suffix.

        Raises:
            UserError: another suffix, no lesion to show, or the file exists or cannot be written.
        """
        check_suffix(path)
        if not self.tiles:
            raise UserError(f"{path}: no lesion to show, so no contact sheet was written; leave out --out")
        if path.suffix.lower() == ".png":
            atomic_write_bytes(path, self._png(), overwrite=overwrite)
            return
        page = environment().get_template("lesion_sheet.html").render(sheet=self)
        atomic_write_text(path, page, overwrite=overwrite)

    def _png(self) -> bytes:
        width, height = 3 * TILE_PX + _GAP_PX, TILE_PX + _CAPTION_PX + _GAP_PX
        columns = min(_COLUMNS, len(self.tiles))
        rows = -(-len(self.tiles) // columns)
        sheet = Image.new("L", (max(columns * width, 2 * width) + _GAP_PX, rows * height + 64), 20)
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(size=12)
        draw.text((_GAP_PX, 8), f"{self.title}: research use only", fill=255, font=font)
        for line, text in enumerate((self._shown, _LEGEND)):
            draw.text((_GAP_PX, 24 + 15 * line), text, fill=190, font=font)
        for number, tile in enumerate(self.tiles):
            left = _GAP_PX + number % columns * width
            top = 60 + number // columns * height
            sheet.paste(Image.fromarray(tile.gray), (left, top))
            caption = tile.caption
            # shorten at the start: the numbers at the end matter more than a long name
            while draw.textlength(caption, font=font) > width - _GAP_PX:
                caption = "…" + caption[2:]
            draw.text((left, top + TILE_PX + 2), caption, fill=220, font=font)
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def check_suffix(path: Path) -> None:
    """Refuse a file that is neither PNG nor HTML, before hours are spent on reading images.

    Raises:
        UserError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a contact sheet is a .png or .html file; give such a name")


def marked_plane(
    volume: Volume, plane: drawing.Plane, center: np.ndarray, low: float, high: float, px: int = TILE_PX
) -> np.ndarray:
    """One plane through a voxel index (x, y, z) of a volume, (px, px) uint8, with marks at its edges."""
    frame = drawing.centered_frame(plane, volume.spacing_mm, center, FIELD_OF_VIEW_MM, px)
    picture = drawing.sample_plane(drawing.take_plane(volume.data, plane, center[plane.through_axis]), frame)
    gray = drawing.to_gray(picture, low, high)
    middle, arm = px // 2, px // 6
    for line in (gray[middle], gray[:, middle]):  # leave the center free
        line[:arm] = line[-arm:] = _MARK
    gray[:, -1] = 0  # a line between adjacent planes
    return gray
