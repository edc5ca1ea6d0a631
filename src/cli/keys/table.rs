//! A table for people: a header, columns as wide as what stands in them.

/// `rows` under `header`, a line each.
pub(super) fn table<const COLUMNS: usize>(header: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in [header.map(|name| name.to_uppercase())].iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_as_wide_as_its_widest_cell() {
        let rows = [["a", "1"], ["äöü", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["x", "name"], rows.to_vec()), "X    NAME\na    1\näöü\n");
    }
}
