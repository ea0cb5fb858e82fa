//! Plain tables: a bold heading, aligned columns, no lines.

use std::io::Write;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, ContentArrangement};

use crate::failure::Result;
use crate::ui;

/// Which edge a column keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of text under a heading.
pub struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// An empty table with those headings.
    pub fn new<const C: usize>(columns: [(&str, Align); C]) -> Self {
        let mut table = comfy_table::Table::new();
        table.set_header(columns.map(|(name, _)| name));
        for (column, (_, align)) in table.column_iter_mut().zip(columns) {
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        Table { table }
    }

    /// Adds a row.
    pub fn row<I: IntoIterator<Item = T>, T: Into<comfy_table::Cell>>(&mut self, cells: I) {
        self.table.add_row(cells);
    }

    /// Writes it for a person; in a terminal, long cells wrap to its width.
    pub fn print(mut self, out: &mut dyn Write) -> Result {
        self.table.load_style(NOTHING);
        if let Some(width) = ui::width() {
            self.table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        if let Some(first) = self.table.column_mut(0) {
            first.set_padding((0, 1));
        }
        let text = self.table.trim_fmt();
        let heading = ui::HEADING;
        for (i, line) in text.lines().enumerate() {
            match i {
                0 => writeln!(out, "{heading}{line}{heading:#}")?,
                _ => writeln!(out, "{line}")?,
            }
        }
        Ok(())
    }

    /// Writes it as Markdown.
    pub fn print_markdown(mut self, out: &mut dyn Write) -> Result {
        self.table.load_style(ASCII_MARKDOWN);
        writeln!(out, "{}", self.table.trim_fmt())?;
        Ok(())
    }
}
