//! INT8 rows: bitsandbytes' LLM.int8 (arXiv 2208.07339), one absmax a row.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, Parity, RowBlock, ScaleKind, Values, midpoints_tie_even,
};

static TABLE: [f32; 256] = table();
static UPS: [f32; 254] = midpoints_tie_even(&grid(), Parity::Odd);
static CODES: [u8; 255] = codes();
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 0 };

/// Value of each code, a two's complement byte. -128 is never written.
const fn table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = code as u8 as i8 as f32;
        code += 1;
    }
    table
}

/// -127, -126, .. 127.
const fn grid() -> [f32; 255] {
    let mut grid = [0.0; 255];
    let mut i = 0;
    while i < 255 {
        grid[i] = i as f32 - 127.0;
        i += 1;
    }
    grid
}

const fn codes() -> [u8; 255] {
    let mut codes = [0; 255];
    let mut i = 0;
    while i < 255 {
        codes[i] = (i as i32 - 127) as i8 as u8;
        i += 1;
    }
    codes
}

pub(super) static INT8: Format = Format {
    name: "int8",
    about: "8-bit integers, one scale a row (bitsandbytes, LLM.int8)",
    values: Values::Integer(&TABLE),
    code_bits: 8,
    weights_per_code: 1,
    packing: Packing::HighFirst,
    layout: Layout::Rows { block: RowBlock::Whole, pad: 1 },
    scale: ScaleKind::Absmax,
    peak: 127.0,
    unit: 1.0 / 127.0,
    has_mean: false,
    encoder: Some(&ENCODER),
    keys: Keys::RowStats,
    variant: None,
};
