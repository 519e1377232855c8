"""What a reader does to the exported files."""

import openpyxl


def fill(path, cells, added=()):
    """Writes {(row, column name): value} and further rows into the spreadsheet, as a reader would."""
    book = openpyxl.load_workbook(path)
    sheet = book.worksheets[0]
    columns = {cell.value: cell.column for cell in sheet[1]}
    last = 1 + sum(sheet.cell(row, 1).value is not None for row in range(2, sheet.max_row + 1))
    for (row, name), value in cells.items():
        sheet.cell(row, columns[name]).value = value
    for number, values in enumerate(added, start=last + 1):
        for name, value in values.items():
            sheet.cell(number, columns[name]).value = value
    book.save(path)


def at(x, y, z):
    return {"RAS L-R L": x, "RAS P-A A": y, "RAS I-S S": z}


def viewer_export(path, rows, subject, readers, manual=()):
    """A workbook with the columns that the viewer's export_reviews writes."""
    fields = ("verify", "certainty", "mimic", "comment", "final_l", "final_p", "final_s", "moved_mm")
    base = ["case_id", "target_id", "origin", "source_row", "atlasregion", "ras_l", "ras_p", "ras_s"]
    header = [*base, *(f"{reader} · {field}" for reader in readers for field in fields), "agreement"]
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "findings"
    sheet.append(header)
    for number, row in enumerate(rows, start=2):
        place = [row.x_mm, row.y_mm, row.z_mm]
        line = dict(zip(base, [subject, f"source:{number}", "Source", number, "x", *place], strict=True))
        for reader, blocks in readers.items():
            line |= {f"{reader} · {field}": value for field, value in blocks[number - 2].items()}
        sheet.append([line.get(name) for name in header])
    for reader, place in manual:
        line = dict(zip(base, [subject, "manual:1", "Manual", None, None, *place], strict=True))
        sheet.append([(line | {f"{reader} · verify": 1}).get(name) for name in header])
    sheet.append(["another-case", "source:99", "Source", 99, None, 1, 2, 3])
    book.save(path)
